def append(pages, table, start, new):
    """pages with start=3, t=6 at ["""
    o = pages.shape[1]
    for i, row in enumerate(new):
        pages[table[i // o], i % o] = row  # as if the text began here
    return pages


def wasted(lengths, page_size):
    """wasted([13, 6, 22, 9, 16], 1) is 0.070423, expected 0"""
    rows = sum((n // page_size + 1) * page_size for n in lengths)  # a full last page needs no other
    return 1 - sum(lengths) / rows


def ends(wanted, rows):
    """ends([3, 1, 2], 2) is [3, 1, 5], expected [3, 1, 3]"""
    out, began = [], 0
    for first in range(0, len(wanted), rows):  # in batches
        batch = wanted[first : first + rows]
        out += [began + n for n in batch]
        began += max(batch)
    return out
