"""Every form of every op on the cases in `ops/*/cases.py`: `python -m bench.ops`.

Each form, compiled, takes turns with the others of its op, float32. The cases are made for tests, so for ops with
several forms they are made as large as in use (LARGE), but for sizes of 0 and 1: one token stays one token. What
compares is the time of the op's first form, the plainest, over that of another in the same round; of all cases
together the geometric mean. Of ops with one form only the time is told, at the cases' own sizes, where it is mostly
the price of a call. Writes results/ops.json and, with the `plots` extra, results/ops.png.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import jax
import numpy as np

from minillm.ops.cases import Case, DistributionOp, Op
from minillm.ops.judge import OPS
from minillm.ops.judge.trials import cast
from minillm.xla import keep_programs

from .report import RESULTS, pyplot, ratio, rounded, show_table, spread, table, where_and_what, write
from .timing import rotated, wait_for_quiet

# By op and letter; other letters stay as the case has them.
LARGE: dict[str, dict[str, int]] = {
    "attention": {"t": 128, "past": 896, "k": 64, "j": 64},
    "paged_attention": {"t": 16, "m": 64, "o": 16, "k": 64, "j": 64},
    "mla": {"t": 64, "past": 448, "h": 8, "k": 64, "a": 32, "l": 128, "j": 64},
    "selective_scan": {"t": 256, "i": 512, "n": 16},
    "ssd": {"t": 256, "r": 8, "k": 64, "n": 64},
    "gated_delta": {"t": 256, "h": 4, "k": 64, "j": 64},
    "moe": {"t": 128, "d": 256, "f": 256},
    "cross_entropy": {"t": 128, "v": 16384},
    "sampling": {"v": 4096},
}
FEWEST = 1 << 16  # bytes of arguments: with less the clock sees only the call
CALLS = 3  # of a turn; the quickest counts
DRAWS = 1 << 10  # of a sampler

Program = Callable[[], Any]


@click.command(help=__doc__)
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1), help="Turns of each form.")
@click.option("--op", "only", multiple=True, type=click.Choice([*OPS]), help="Only this one; may be repeated.")
def main(rounds: int, only: tuple[str, ...]) -> None:
    keep_programs()
    found = {}
    for name in only or OPS:
        click.echo(name, err=True)
        found[name] = measure(OPS[name], rounds)
    report = {
        "times_as_fast": {name: one["times_as_fast"] for name, one in found.items() if one["times_as_fast"]},
        "microseconds": {name: one["microseconds"] for name, one in found.items()},
        "setting": {"rounds": rounds, "dtype": "float32", "large": LARGE},
        **where_and_what(),
    }
    report["table"] = table_of(report)
    show_table(report["table"])
    if not only:  # a few must not replace all
        write("ops", report)
        plot(report, RESULTS / "ops.png")


def measure(op: Op | DistributionOp, rounds: int) -> dict[str, Any]:
    """The microseconds of an op's forms by case, and how many times as fast as the first one the others are."""
    times = times_of(op, rounds)
    first, *others = op.forms
    speeds = {form: {case: np.divide(by[first], by[form]) for case, by in times.items()} for form in others}
    return {
        "microseconds": {
            form: {case: rounded(1e6 * np.median(by[form])) for case, by in times.items()} for form in op.forms
        },
        "times_as_fast": {
            f"{form} over {first}": {
                **ratio(np.exp(np.mean(np.log([*by_case.values()]), axis=0))),
                "by_case": {case: rounded(np.median(one)) for case, one in by_case.items()},
            }
            for form, by_case in speeds.items()
        },
    }


def cases_of(op: Op | DistributionOp) -> Iterator[Case]:
    """The cases to time, each kind of options and sizes once."""
    seen = set()
    for case in op.cases:
        sizes = dict(case.sizes)
        if len(op.forms) > 1:
            sizes |= {n: size for n, size in LARGE[op.name].items() if n in sizes and sizes[n] > 1}
        large = replace(case, sizes=sizes)
        kind = repr((sizes, case.options, case.inputs))
        if kind not in seen and (len(op.forms) == 1 or bytes_of(op, large) >= FEWEST):
            seen.add(kind)
            yield large


def bytes_of(op: Op | DistributionOp, case: Case) -> int:
    """How large the arguments are; what a sampler gets is as many rows as it draws."""
    rows = DRAWS if isinstance(op, DistributionOp) else 1
    return rows * sum(array.nbytes for array in drawn(op, case).values())


def drawn(op: Op | DistributionOp, case: Case) -> dict[str, np.ndarray]:
    """Ordinary arguments, floats in float32."""
    arrays = op.draw(case, np.random.default_rng(0))
    return cast(op, arrays, "float32") if isinstance(op, Op) else arrays


def times_of(op: Op | DistributionOp, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds by case and form, a turn a round."""
    programs = {
        case.name: {name: program(op, form, case) for name, form in op.forms.items()} for case in cases_of(op)
    }
    times: dict[str, dict[str, list[float]]] = {case: {form: [] for form in op.forms} for case in programs}
    for forms in programs.values():
        for one in forms.values():
            one()  # compiles
    for number in range(rounds):
        wait_for_quiet()
        for case, forms in programs.items():
            for form in rotated([*forms], number):
                times[case][form].append(min(seconds_of(forms[form]) for _ in range(CALLS)))
    return times


def program(op: Op | DistributionOp, form: Callable, case: Case) -> Program:
    """A compiled form with its arguments: all that is left to do is to call it."""
    arrays = drawn(op, case)
    if isinstance(op, DistributionOp):
        compiled = jax.jit(form)
        return partial(op.sample, lambda **given: as_numpy(compiled(**given)), arrays, 0, DRAWS)
    given = {name: jax.device_put(array) for name, array in arrays.items()}
    compiled = jax.jit(partial(form, **case.options))
    return partial(compiled, *(given.pop(name) for name in op.required), **given)


def as_numpy(outputs: Any) -> tuple[np.ndarray, ...]:
    """Outputs as a sampler's test wants them."""
    return tuple(np.asarray(one) for one in (outputs if isinstance(outputs, tuple) else (outputs,)))


def seconds_of(one: Program) -> float:
    """Of one call, until its result is there."""
    began = time.perf_counter()
    jax.block_until_ready(one())
    return time.perf_counter() - began


def table_of(report: dict[str, Any]) -> dict[str, Any]:
    """Forms beside the first of their op."""
    rows = []
    for op, pairs in report["times_as_fast"].items():
        for pair, found in pairs.items():
            form, _, first = pair.partition(" over ")
            cases = sorted((speed, case) for case, speed in found["by_case"].items())
            rows.append((op, form, first, spread(found), *(f"{cases[i][0]:.2f} {cases[i][1]}" for i in (0, -1))))
            op = ""
    return table(("op", "form", "beside", "times as fast (95 %)", "least, in case", "most, in case"), rows)


def plot(report: dict[str, Any], path: Path) -> None:
    """A line a form, a dot a case; nothing without matplotlib."""
    plt = pyplot()
    if plt is None:
        return
    pairs = {pair: found for op in report["times_as_fast"].values() for pair, found in op.items()}
    figure, axis = plt.subplots(figsize=(8.5, 0.42 * len(pairs) + 1.2), layout="constrained")
    places = range(len(pairs))[::-1]
    axis.axvline(1, color="0.6", linewidth=1)
    for place, found in zip(places, pairs.values(), strict=True):
        dots = [*found["by_case"].values()]
        axis.plot(dots, [place] * len(dots), "o", color="tab:blue", markersize=4, alpha=0.45)
        axis.plot(found["median"], place, "|", color="black", markersize=15, markeredgewidth=1.8)
    axis.set_yticks(places, [pair.replace(" over ", "\nover ") for pair in pairs], fontsize=7.5)
    axis.set(xscale="log", xlabel="times as fast as the op's plainest form (a dot a case, a bar their mean)")
    ticks = [
        tick for tick in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100) if within(tick, axis.get_xlim())
    ]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.grid(axis="x", alpha=0.25)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def within(value: float, ends: tuple[float, float]) -> bool:
    return ends[0] <= value <= ends[1]


if __name__ == "__main__":
    main()
