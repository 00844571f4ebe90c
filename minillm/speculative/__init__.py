"""Speculative decoding: guess several tokens cheaply, check them in one pass, keep those that hold.

A decoding step reads every weight to make one token; a pass over eight tokens reads them once, too. So if something
cheap can guess what the model will say, most of its words come for free, and none of them is any other word.

    verify.py         which guesses stay: the same tokens come out as without speculation
    pace.py           how many to guess: what was seen to pay, or none
    decode.py         the loop: draft, verify, learn how much to draft
    record.py         what came of it
    trie.py           several guesses as one tree, which a pass checks as well as a chain
    prompt_lookup.py, ngram.py, draft_model.py      drafters: text seen before, its statistics, a smaller model

A drafter is anything with the one method of `Drafter`.
"""

from collections.abc import Sequence
from typing import Protocol

from .trie import Tree

__all__ = ["Drafter", "Tree"]


class Drafter(Protocol):
    """Guesses how a text goes on."""

    def draft(self, text: Sequence[int], most: int) -> Tree:
        """What may follow the tokens of text, up to `most` tokens; an empty tree if there is no guess."""
        ...
