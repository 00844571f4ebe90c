"""Prefix sharing: texts that begin alike are read once (RadixAttention; Zheng et al. 2023, arXiv:2312.07104).

A tree holds the texts whose pages are still in memory. Each node is one page full of tokens, so the way from the
root to a node is the beginning of a text, and every request that begins so may look at the same pages. Nobody
writes to them: a request goes on in pages of its own. If it leaves the tree within a page, it is given a copy of
that one (copy on write).

What is not in pages, a recurrent state, exists for one place in the text only. Such blocks are shared by
snapshots, taken where a page ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax

from .paged import Paged
from .pool import PagePool

SNAPSHOTS = 16  # kept at once; each is as large as one sequence's state


@dataclass(eq=False)
class Node:
    """One page of a text: its tokens, what follows it, when it was last of use, the state behind it if kept."""

    tokens: tuple[int, ...]
    page: int
    parent: "Node | None"
    children: dict[tuple[int, ...], "Node"] = field(default_factory=dict)
    used: int = 0
    snapshot: Any = None


class PrefixTree:
    """Beginnings of texts by page; each node is a holder of its page."""

    def __init__(self, pool: PagePool):
        self.pool, self.root, self.clock = pool, Node((), -1, None), 0
        self.nodes: set[Node] = set()

    def find(self, text: Sequence[int]) -> list[Node]:
        """The nodes along a text, as far as it is known in whole pages."""
        node, path, size = self.root, [], self.pool.page_size
        for first in range(0, len(text) - size + 1, size):
            node = node.children.get(tuple(text[first : first + size]))
            if node is None:
                break
            path.append(node)
        return self.touched(path)

    def beside(self, path: list[Node], text: Sequence[int]) -> tuple[int, int]:
        """Of the pages that follow a path, the one that begins most like the rest of a text, and for how long."""
        rest = text[len(path) * self.pool.page_size :]
        children = (path[-1] if path else self.root).children.values()
        best = max(children, key=lambda node: agreement(node.tokens, rest), default=self.root)
        return best.page, agreement(best.tokens, rest)

    def lent(self, path: list[Node]) -> list[int]:
        """The pages of a path, with one more holder."""
        pages = [node.page for node in path]
        self.pool.share(pages)
        return pages

    def extend(self, pages: list[int], rows: int) -> bool:
        """As `PagePool.extend`, if need be at the cost of texts that nobody reads any more."""
        if self.pool.pages_for(rows) - len(pages) > len(self.pool.free) + self.reclaimable():
            return False
        while not self.pool.extend(pages, rows):
            evicted = self.evict()
            assert evicted, "fewer pages could be given back than were counted"
        return True

    def reclaimable(self) -> int:
        """How many pages could be given back: those that nobody else holds, nor any that follows them."""
        needed: set[Node] = {self.root}
        for one in self.nodes:
            node = one if self.pool.holders[one.page] > 1 else self.root
            while node is not None and node not in needed:
                needed.add(node)
                node = node.parent
        return len(self.nodes) - len(needed) + 1

    def insert(self, text: Sequence[int], pages: Sequence[int]) -> Node:
        """Remember the pages of a text, all of them full; the last one's node. What is there already stays."""
        node, path, size = self.root, [], self.pool.page_size
        for i, page in zip(range(len(text) // size), pages, strict=False):
            tokens = tuple(text[i * size : (i + 1) * size])
            if tokens not in node.children:
                node.children[tokens] = Node(tokens, page, node)
                self.pool.share([page])
                self.nodes.add(node.children[tokens])
            node = node.children[tokens]
            path.append(node)
        self.touched(path)
        return node

    def keep(self, node: Node, snapshot: Any) -> None:
        """Keep the state behind a node, and let go of the one that was of use least recently if there are many."""
        node.snapshot = snapshot
        kept = [one for one in self.nodes if one.snapshot is not None]
        if len(kept) > SNAPSHOTS:
            min((one for one in kept if one is not node), key=lambda one: one.used).snapshot = None

    def evict(self) -> bool:
        """Give back the page that was of use least recently and that nobody else holds; False if there is none."""
        unused = [one for one in self.nodes if not one.children and self.pool.holders[one.page] == 1]
        if not unused:
            return False
        node = min(unused, key=lambda one: one.used)
        assert node.parent is not None
        del node.parent.children[node.tokens]
        self.nodes.remove(node)
        self.pool.take_back([node.page])
        return True

    def touched(self, path: list[Node]) -> list[Node]:
        """The same nodes, of use just now; the later in a text, the sooner they may go."""
        for node in reversed(path):
            self.clock += 1
            node.used = self.clock
        return path


def agreement(one: Sequence[int], other: Sequence[int]) -> int:
    """With how many equal tokens both begin."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def is_paged(part: Any) -> bool:
    """Whether a part of a model's memory lies in pages."""
    return isinstance(part, Paged)


def all_paged(state: Any) -> bool:
    """Whether all of a model's memory does."""
    return all(is_paged(part) for part in jax.tree.leaves(state, is_leaf=is_paged))


@jax.jit
def snapshot(state: Any, slot: jax.Array) -> Any:
    """What a slot holds outside of pages."""
    return jax.tree.map(lambda part: () if is_paged(part) else part[slot], state, is_leaf=is_paged)


@partial(jax.jit, donate_argnums=0)
def restored(state: Any, slot: jax.Array, saved: Any) -> Any:
    """Memory with a snapshot in a slot."""

    def put(part: Any, one: Any) -> Any:
        return part if is_paged(part) else part.at[slot].set(one)

    return jax.tree.map(put, state, saved, is_leaf=is_paged)


@partial(jax.jit, donate_argnums=0)
def with_copied_page(state: Any, source: jax.Array, target: jax.Array) -> Any:
    """Memory with one page's rows in another page as well."""

    def copy(part: Any) -> Any:
        return jax.tree.map(lambda x: x.at[target].set(x[source]), part) if is_paged(part) else part

    return jax.tree.map(copy, state, is_leaf=is_paged)
