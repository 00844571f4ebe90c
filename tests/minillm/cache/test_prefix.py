"""Pages of texts that begin alike: found again, given back when needed, and never under a reader's feet."""

from hypothesis import given
from hypothesis import strategies as st

from minillm.cache.pool import PagePool
from minillm.cache.prefix import SNAPSHOTS, PrefixTree

SIZE = 2
TEXTS = st.lists(st.integers(0, 2), min_size=1, max_size=12)


@given(data=st.data())
def test_what_is_found_is_what_was_read_and_no_page_is_lost(data):
    pool = PagePool(12, SIZE)
    tree, held, written = PrefixTree(pool), [], {}
    for _ in range(data.draw(st.integers(1, 30))):
        if held and data.draw(st.booleans()):
            text, pages = held.pop(data.draw(st.integers(0, len(held) - 1)))
            tree.insert(text, pages)
            pool.take_back(pages)
        else:
            text = data.draw(TEXTS)
            path = tree.find(text)
            assert [written[node.page] for node in path] == [
                tuple(text[i : i + SIZE]) for i in range(0, len(path) * SIZE, SIZE)
            ]
            pages, before = tree.lent(path), (len(tree.nodes), len(pool.free))
            if tree.extend(pages, len(text)):
                for i in range(len(path), len(text) // SIZE):
                    written[pages[i]] = tuple(text[i * SIZE : (i + 1) * SIZE])
                held.append((text, pages))
            else:
                assert (len(tree.nodes), len(pool.free)) == before, "what cannot be had must cost nothing"
                pool.take_back(pages)
        assert all(pool.holders[page] for _, pages in held for page in pages)
        assert len(pool.free) + sum(count > 0 for count in pool.holders) == pool.n_pages
    for _, pages in held:
        pool.take_back(pages)
    while tree.evict():
        pass
    assert sorted(pool.free) == list(range(pool.n_pages))


def test_the_newest_snapshot_of_many_is_kept():
    pool = PagePool(SNAPSHOTS + 4, SIZE)
    tree, pages, text = PrefixTree(pool), [], list(range(2 * SNAPSHOTS + 8))
    assert pool.extend(pages, len(text))
    for n in range(SIZE, len(text) + 1, SIZE):
        node = tree.insert(text[:n], pages)
        tree.keep(node, n)
        assert node.snapshot == n
    assert sum(node.snapshot is not None for node in tree.nodes) == SNAPSHOTS


def test_the_page_beside_a_path_is_the_one_that_begins_most_like_the_text():
    tree = PrefixTree(PagePool(8, 4))
    pages = []
    assert tree.pool.extend(pages, 12)
    tree.insert([1, 2, 3, 4, 5, 6, 7, 8], pages[:2])
    tree.insert([1, 2, 3, 4, 5, 6, 9, 9], [pages[0], pages[2]])
    path = tree.find([1, 2, 3, 4, 5, 6, 9])
    assert [node.page for node in path] == pages[:1]
    assert tree.beside(path, [1, 2, 3, 4, 5, 6, 9]) == (pages[2], 3)
    assert tree.beside(path, [1, 2, 3, 4, 0]) == (pages[1], 0)
