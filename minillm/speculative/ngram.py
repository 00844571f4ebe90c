"""N-gram drafting: the text's own statistics are a small language model.

For every run of one to `order` tokens it is counted what came after it. The draft follows the most frequent
continuation of the longest run that is known, token by token (a back-off model as in Katz 1987, without its
smoothing). Unlike prompt lookup it can join pieces that never stood together.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

from .trie import Tree, trie


class NGram:
    """Counts what it is given and drafts from it; the likeliest `branches` first tokens share it, as a tree."""

    def __init__(self, order: int = 4, branches: int = 1):
        self.order, self.branches = order, branches
        self.counts: defaultdict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        self.read: list[int] = []

    def draft(self, text: Sequence[int], most: int) -> Tree:
        """What may follow text, up to `most` tokens. A text that does not go on the last one starts a new count."""
        if self.read != list(text[: len(self.read)]):
            self.counts.clear()
            self.read = []
        for place in range(len(self.read), len(text)):
            for n in range(1, min(self.order, place) + 1):
                self.counts[tuple(text[place - n : place])][text[place]] += 1
        self.read = list(text)
        guesses = []
        for first in self.likeliest(self.read, self.branches):
            guess, following = [], [first]
            while following and len(guess) < max(most // self.branches, 1):
                guess += following
                following = self.likeliest([*self.read[-self.order :], *guess], 1)
            guesses.append(guess)
        return trie(guesses, most)

    def likeliest(self, text: list[int], n: int) -> list[int]:
        """The n tokens that most often came after the longest end of text that is known."""
        for length in range(min(self.order, len(text)), 0, -1):
            counts = self.counts.get(tuple(text[-length:]))
            if counts:
                return [token for token, _ in counts.most_common(n)]
        return []
