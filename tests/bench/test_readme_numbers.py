"""A figure of speed or size in a README stands in a committed result, to as many digits as the README shows."""

import json
import re
from functools import cache
from typing import Any

import pytest
from examples import ROOT

from bench.report import RESULTS
from bench.timing import QUIET

NUMBER = r"\d[\d,]*(?:\.\d+)?"
UNITS = "x|times|ms|s|kB|MB|GB|GB/s|tokens/s|tokens a second|%"
FIGURE = re.compile(rf"(?<![\w.,])({NUMBER})(?= ?(?:{UNITS})(?![\w/]))")

# By page: a phrase with # for the figure, and where that stands: a result and the way in it, or a number.
Place = tuple[str, ...] | float
SHARE_OF_BOUND = ("tasks", "one text", "speeds", "minillm", "bandwidth_share")
SAID: dict[str, dict[str, Place]] = {
    "README.md": {
        "newer; # GB with JAX": ("startup", "sizes", "installed with JAX, GB"),
        "takes one more line, # MB (": ("startup", "sizes", "smollm2-135m on disk, MB"),
        "and # GB of memory as float32": ("decode", "tasks", "one text", "resident_gb", "minillm"),
        "own work was # ms this way": ("dispatch", "ms", "flax.struct"),
        "this way, # ms with `linen`": ("dispatch", "ms", "linen"),
        "`linen` and # ms with `nnx`": ("dispatch", "ms", "nnx"),
    },
    "bench/README.md": {
        "Its interval is a # % bootstrap": 95,
        "other programs took # % of the machine": 100 * QUIET,
        "billion parameters they reach # of it": ("decode-1b", *SHARE_OF_BOUND),
    },
}


@cache
def result(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def value(place: Place) -> float:
    """The number at a place."""
    if not isinstance(place, tuple):
        return place
    found: Any = result(place[0])
    for name in place[1:]:
        found = found[name]
    return found


def found_in(page: str, phrase: str) -> re.Match:
    """The only place of a phrase in a page, its figure as a group."""
    pattern = re.escape(phrase).replace(r"\#", f"({NUMBER})")
    places = [*re.finditer(pattern, (ROOT / page).read_text())]
    assert len(places) == 1, f"{page}: {phrase!r} occurs {len(places)} times"
    return places[0]


def as_shown(text: str, number: float) -> str:
    """A number with the digits that a figure shows."""
    return (
        f"{number:,.{len(text.partition('.')[2])}f}" if "," in text else f"{number:.{len(text.partition('.')[2])}f}"
    )


@pytest.mark.parametrize(("page", "phrase"), [(page, phrase) for page, said in SAID.items() for phrase in said])
def test_a_figure_is_the_one_that_was_measured(page, phrase):
    shown = found_in(page, phrase)[1]
    assert shown == as_shown(shown, value(SAID[page][phrase]))


@pytest.mark.parametrize("page", SAID)
def test_every_figure_of_speed_or_size_has_a_source(page):
    sourced = {found_in(page, phrase).span(1) for phrase in SAID[page]}
    text = (ROOT / page).read_text()
    for figure in FIGURE.finditer(text):
        line = text.count("\n", 0, figure.start()) + 1
        assert figure.span(1) in sourced, f"{page}:{line}: {figure[0]} is in no result; name its source in SAID"


def test_figures_are_recognised():
    text = "2.5x of 98 MB, 1,200 tokens/s in 3 ms, 40 % of 0.1–0.5 ms; but 3.11, 16 requests, v2.1x2 and 7 models"
    assert [figure[1] for figure in FIGURE.finditer(text)] == ["2.5", "98", "1,200", "3", "40", "0.5"]
