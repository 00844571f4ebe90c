"""Rules: which recipe for which matrix.

    q4_k                            one for all
    q4_k,embed=q8_0,down=q6_k       the others by the name of the matrix, or by its place: blocks[3].down, blocks[1*
    awq:int4-g32,head=keep          a method of `compress.methods` stands before the recipe; `keep` is as it is

Of several rules that fit a matrix the last one counts. Routers and positions stay as they are in any case.
"""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from ..errors import UserError
from .recipes import Recipe, recipe_named

KEEP = "keep"


class Rule(NamedTuple):
    """pattern: `*` for anything; method: its name, or None; recipe: None keeps a matrix as it is."""

    pattern: str
    method: str | None
    recipe: Recipe | None

    def fits(self, place: str) -> bool:
        """Whether it speaks of the matrix at a place."""
        pattern = self.pattern.replace("[", "[[]")  # places have brackets
        return fnmatchcase(place, pattern) or fnmatchcase(place.rpartition(".")[2], pattern)


def read_rules(text: str) -> list[Rule]:
    """Rules from what a user writes; UserError names the part that is none."""
    rules = []
    for part in text.split(","):
        pattern, equals, recipe = part.strip().rpartition("=")
        if equals and not re.fullmatch(r"[\w.*\[\]]+", pattern):
            raise UserError(f"{part.strip()!r} is no rule, expected RECIPE or PATTERN=RECIPE, such as embed=q8_0")
        method, _, name = recipe.partition(":") if ":" in recipe else ("", "", recipe)
        rules.append(Rule(pattern or "*", method or None, None if recipe == KEEP else recipe_named(name)))
    return rules


def rule_for(place: str, rules: Sequence[Rule]) -> Rule | None:
    """The last rule that fits."""
    return next((rule for rule in reversed(rules) if rule.fits(place)), None)


def check_used(rules: Sequence[Rule], places: Sequence[str]) -> None:
    """UserError for a rule that fits no matrix."""
    for rule in rules:
        if not any(rule.fits(place) for place in places):
            names = ", ".join(dict.fromkeys(place.rpartition(".")[2] for place in places))
            raise UserError(f"no matrix is called {rule.pattern!r}, expected one of {names}, or a place with *")
