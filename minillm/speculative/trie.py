"""A tree of drafted tokens, from several guesses of how a text goes on."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Tree:
    """tokens, and the index of the one that each follows, -1 for those that follow the text.

    No token has two children that are the same.
    """

    tokens: list[int] = field(default_factory=list)
    parent: list[int] = field(default_factory=list)

    @property
    def is_chain(self) -> bool:
        """Whether each token follows the one before it."""
        return self.parent == list(range(-1, len(self.parent) - 1))

    @property
    def depth(self) -> int:
        """Tokens of its longest path."""
        depths: list[int] = []
        for parent in self.parent:
            depths.append(1 + (depths[parent] if parent >= 0 else 0))
        return max(depths, default=0)

    def child(self, parent: int, token: int) -> int:
        """The index of a token that follows another, put there if it does not yet."""
        for index, (above, one) in enumerate(zip(self.parent, self.tokens, strict=True)):
            if (above, one) == (parent, token):
                return index
        self.tokens.append(token)
        self.parent.append(parent)
        return len(self.tokens) - 1


def trie(guesses: Sequence[Sequence[int]], most: int) -> Tree:
    """The guesses as one tree of at most so many tokens: what they begin with in common stands there once."""
    tree = Tree()
    for guess in guesses:
        last = -1
        for token in guess:
            size = len(tree.tokens)
            last = tree.child(last, token)
            if len(tree.tokens) > most:
                return Tree(tree.tokens[:size], tree.parent[:size])
    return tree
