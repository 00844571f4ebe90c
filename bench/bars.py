"""What must hold, and whether it does: the first table of REPORT.md, from what is in results/."""

import json
from typing import Any, NamedTuple

from .report import RESULTS, spread, table


class Bar(NamedTuple):
    """A figure, where it stands (a result, and the way in it), and what it must be at least, or at most."""

    what: str
    place: tuple[str | int, ...]
    wanted: float
    at_most: bool = False


def times_as_fast(task: str, pair: str) -> tuple[str, ...]:
    """Where a ratio of `bench.decode` stands."""
    return ("decode", "tasks", task, "times_as_fast", pair)


BARS = [
    Bar(
        "float32, one text: share of the memory bound",
        ("decode", "tasks", "one text", "speeds", "minillm", "bandwidth_share"),
        0.85,
    ),
    Bar("float32, one text, over llama.cpp F32", times_as_fast("one text", "minillm over llama.cpp F32"), 1),
    Bar("W8A8, one text, over llama.cpp Q4_1", times_as_fast("one text", "minillm w8a8 over llama.cpp Q4_1"), 1),
    Bar(
        "W8A8, eight at once, over transformers bf16",
        times_as_fast("eight at once", "minillm w8a8 over transformers bf16"),
        1.5,
    ),
    Bar("float32, prompt, over llama.cpp F32", times_as_fast("a prompt of 512", "minillm over llama.cpp F32"), 1),
    Bar("float32, prompt, over transformers", times_as_fast("a prompt of 512", "minillm over transformers"), 0.8),
    Bar(
        "Mamba: a step at 65,536 tokens over one at 256",
        ("growth", "lines", "Mamba", "growth", -1),
        1.1,
        True,
    ),
]


def table_of_bars() -> dict[str, Any]:
    """A line a bar."""
    return table(("", "wanted", "found", ""), [line(bar, found_at(bar.place)) for bar in BARS])


def found_at(place: tuple[str | int, ...]) -> Any:
    """A ratio or a number in a result, None if that was not measured."""
    path = RESULTS / f"{place[0]}.json"
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    for name in place[1:]:
        found = found[name]
    return found


def line(bar: Bar, found: Any) -> tuple[str, ...]:
    """What was wanted and what was found; a ratio is its median."""
    wanted = f"{'at most' if bar.at_most else 'at least'} {bar.wanted:g}"
    if found is None:
        return bar.what, wanted, "not measured", ""
    number, shown = (found["median"], spread(found)) if isinstance(found, dict) else (found, f"{found:.2f}")
    held = number <= bar.wanted if bar.at_most else number >= bar.wanted
    return bar.what, wanted, shown, "held" if held else "**missed**"
