"""Prompt lookup (Saxena 2023): what followed the last time these words were written may well follow again.

Copying, quoting and editing repeat long pieces of the prompt. The longest end of the text that also stands
earlier in it is found, and what came after it there is the draft. It costs no model at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .trie import Tree, trie


@dataclass(frozen=True)
class PromptLookup:
    """Finds ends of `least` to `longest` tokens; the latest `branches` places share a draft, as a tree."""

    least: int = 2
    longest: int = 16
    branches: int = 1

    def draft(self, text: Sequence[int], most: int) -> Tree:
        """What may follow text, up to `most` tokens."""
        tokens = np.asarray(text)
        places = np.arange(len(tokens) - 1)  # a match ends there, so something follows
        found: list[np.ndarray] = []
        for n in range(min(self.longest, len(tokens) - 1)):
            places = places[(places >= n)]
            places = places[tokens[places - n] == tokens[-1 - n]]
            if not len(places):
                break
            if n + 1 >= self.least:
                found.append(places)
        latest_first = [place for places in reversed(found) for place in reversed(places)]
        distinct = list(dict.fromkeys(latest_first))[: self.branches]
        each = max(most // self.branches, 1)
        return trie([copied(text, place + 1, each) for place in distinct], most)


def copied(text: Sequence[int], first: int, n: int) -> list[int]:
    """n tokens from place `first` of text on, and past its end those that were copied: what repeats goes on."""
    out: list[int] = []
    for place in range(first, first + n):
        out.append(text[place] if place < len(text) else out[place - len(text)])
    return out
