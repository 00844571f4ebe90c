"""Who holds which page of a paged memory: a free list, and a count of holders (Kwon et al. 2023, arXiv:2309.06180).

Several may hold a page whose rows they all begin with; it is free again when the last has given it back.
"""


class PagePool:
    """n pages of page_size rows, each free or held by somebody."""

    def __init__(self, n_pages: int, page_size: int):
        self.page_size, self.n_pages = page_size, n_pages
        self.free = list(range(n_pages - 1, -1, -1))  # the lowest is lent first
        self.holders = [0] * n_pages

    def pages_for(self, rows: int) -> int:
        """How many pages hold so many rows."""
        return -(-rows // self.page_size)

    def extend(self, pages: list[int], rows: int) -> bool:
        """Lend what `pages` lacks to hold so many rows, in place; False, and nothing lent, if too few are free."""
        lacking = max(self.pages_for(rows) - len(pages), 0)
        if lacking > len(self.free):
            return False
        lent = [self.free.pop() for _ in range(lacking)]
        self.share(lent)
        pages += lent
        return True

    def share(self, pages: list[int]) -> None:
        """These have one more holder."""
        for page in pages:
            self.holders[page] += 1

    def take_back(self, pages: list[int]) -> None:
        """These have one holder less, and are free if it was the last; the list is emptied."""
        for page in reversed(pages):
            self.holders[page] -= 1
            if not self.holders[page]:
                self.free.append(page)
        pages.clear()
