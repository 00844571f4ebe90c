"""Which operations of a compiled program run when, by XLA's own trace."""

import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from .peers import open_minillm
from .report import rounded

PRODUCTS = re.compile(
    r"dot|ynn_fusion|convolution"
)  # by the name of an operation; all that YNNPACK fuses are products


class Ran(NamedTuple):
    """An operation of a program that ran from begin to end, in seconds; run tells one step from another."""

    program: str
    run: str
    operation: str
    begin: float
    end: float


def open_traced(recipe: str | None) -> Callable[[list[list[int]], int], tuple[list[Ran], float]]:
    """Our own generation, traced: what it ran in place of what it said."""
    decode, options = open_minillm(recipe), jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # which would slow down what is traced

    def traced(prompts: list[list[int]], n: int) -> tuple[list[Ran], float]:
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder, profiler_options=options):
                _, seconds = decode(prompts, n)
            [path] = Path(folder).rglob("*.xplane.pb")
            return [*ran_in(path)], seconds

    return traced


def ran_in(path: Path) -> Iterable[Ran]:
    """What a trace says of operations."""
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                said = dict(event.stats)
                if "hlo_op" in said:
                    begin = event.start_ns / 1e9
                    end = begin + event.duration_ns / 1e9
                    yield Ran(str(said["hlo_module"]), str(said["run_id"]), str(said["hlo_op"]), begin, end)


def summary(ran: list[Ran]) -> dict[str, Any]:
    """Of the program that ran longest, in milliseconds a run: a product runs, something else, or nothing does.

    And how many of both a run has, and which took longest, whatever ran beside.
    """
    programs = defaultdict(list)
    for one in ran:
        programs[one.program].append(one)
    name = max(programs, key=lambda name: covered(programs[name]))
    ran = programs[name]
    products = [one for one in ran if PRODUCTS.match(one.operation)]
    runs = len({one.run for one in ran})
    whole = max(one.end for one in ran) - min(one.begin for one in ran)
    any_of_them, some_product = covered(ran), covered(products)
    longest: dict[str, float] = defaultdict(float)
    for one in ran:
        longest[re.sub(r"[.\d]+$", "", one.operation)] += one.end - one.begin
    most = sorted(longest, key=lambda kind: -longest[kind])
    parts = {
        "products": some_product,
        "other operations": any_of_them - some_product,
        "nothing": whole - any_of_them,
    }
    return {
        "program": name,
        "runs": runs,
        "ms": {part: rounded(1e3 * seconds / runs) for part, seconds in parts.items()},
        "operations": {"products": len(products) / runs, "others": (len(ran) - len(products)) / runs},
        "longest, ms": {kind: rounded(1e3 * longest[kind] / runs) for kind in most[:6]},
    }


def covered(ran: list[Ran]) -> float:
    """The seconds in which any of these ran."""
    seconds, until = 0.0, float("-inf")
    for one in sorted(ran, key=lambda one: one.begin):
        seconds += max(one.end - max(one.begin, until), 0)
        until = max(until, one.end)
    return seconds
