import heapq


def append(pages, table, start, new):
    o = pages.shape[1]
    for i, row in enumerate(new, start):
        pages[table[i // o], i % o] = row
    return pages


def wasted(lengths, page_size):
    rows = sum(-(-n // page_size) * page_size for n in lengths)
    return 1 - sum(lengths) / rows


def ends(wanted, rows):
    free, out = [0] * rows, []
    for n in wanted:
        out.append(heapq.heappop(free) + n)
        heapq.heappush(free, out[-1])
    return out
