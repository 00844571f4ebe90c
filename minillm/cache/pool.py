"""Who owns which page of a paged memory: a free list (Kwon et al. 2023, arXiv:2309.06180, section 4)."""


class PagePool:
    """n pages of page_size rows, each free or lent to somebody."""

    def __init__(self, n_pages: int, page_size: int):
        self.page_size, self.n_pages = page_size, n_pages
        self.free = list(range(n_pages - 1, -1, -1))  # the lowest is lent first

    def pages_for(self, rows: int) -> int:
        """How many pages hold so many rows."""
        return -(-rows // self.page_size)

    def extend(self, pages: list[int], rows: int) -> bool:
        """Lend what `pages` lacks to hold so many rows, in place; False, and nothing lent, if too few are free."""
        lacking = max(self.pages_for(rows) - len(pages), 0)
        if lacking > len(self.free):
            return False
        pages += [self.free.pop() for _ in range(lacking)]
        return True

    def take_back(self, pages: list[int]) -> None:
        """All of these are free again; the list is emptied."""
        self.free += reversed(pages)
        pages.clear()
