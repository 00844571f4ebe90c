"""How many seeded bugs the judge catches, and how many the conventions of other projects do.

`python -m bench.mutants` runs every bug of the catalogue through `ops.validate` and through each convention on the
same cases, and every correct form of every op for false alarms. `--write` puts the table into ops/README.md and
the details into bench/results/mutants.json. Exit code 1 if fewer than 98 % were caught or a correct form failed.
"""

import json
import sys
from collections.abc import Callable, Iterable
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import click
from rich.console import Console
from rich.progress import track

from minillm.ops.judge import OPS

from .catalogue import MUTANTS
from .score import CONVENTIONS, Score, dtypes, false_alarms, score

README = Path(__file__).parents[2] / "ops" / "README.md"
RESULTS = Path(__file__).parents[1] / "results" / "mutants.json"
BEGIN, END = "<!-- kill table: python -m bench.mutants --write -->", "<!-- end of kill table -->"
AIM = 0.98


@click.command(help=__doc__)
@click.option("--op", "only", metavar="NAME", help="Only the bugs of one op, and no run of correct kernels.")
@click.option("--seeds", default=3, show_default=True, help="Seeds for ordinary inputs of correct kernels.")
@click.option("--write", is_flag=True, help="Write the table into ops/README.md.")
def main(only: str | None, seeds: int, write: bool) -> None:
    if only and (write or only not in OPS):
        raise click.UsageError(f"--op is {only!r}, expected one of {', '.join(OPS)}, and no --write beside it")
    scores = parallel(score, [mutant for mutant in MUTANTS if only in (None, mutant.op)], "seeded bugs")
    runs = [] if only else correct_runs(seeds)
    trials, alarms = sum(n for n, _ in runs), [alarm for _, failed in runs for alarm in failed]
    text = table(scores, trials, len(alarms))
    click.echo(text)
    for one in scores:
        if not one.caught_by:
            click.echo(f"not caught: {one.mutant.op}, {one.mutant.form}: {one.mutant.bug}")
    for alarm in alarms:
        click.echo(f"false alarm: {alarm}")
    if write:
        before, _, rest = README.read_text().partition(BEGIN)
        README.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")
        result = {"correct_trials": trials, "false_alarms": alarms, "bugs": [details(one) for one in scores]}
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    caught = sum(bool(one.caught_by) for one in scores)
    sys.exit(0 if caught >= AIM * len(scores) and not alarms else 1)


def correct_runs(seeds: int) -> list[tuple[int, list[str]]]:
    """Every form of every op, in every dtype."""
    jobs = [(op.name, form, dtype) for op in OPS.values() for form in op.forms for dtype in dtypes(op)]
    return parallel(partial(false_alarms, seeds=seeds), jobs, "correct kernels")


def parallel(function: Callable, jobs: list, what: str) -> list:
    """Map over two processes, in chunks of neighbours: they share what the judge worked out for their op."""
    with get_context("spawn").Pool(2) as pool:
        return list(track(pool.imap(function, jobs, chunksize=4), what, len(jobs), console=Console(stderr=True)))


def table(scores: list[Score], trials: int, alarms: int) -> str:
    """The kill table in Markdown, an op a row."""
    lines = [f"| op | bugs | `validate` | {' | '.join(CONVENTIONS)} |", "|---" * (3 + len(CONVENTIONS)) + "|"]
    for name in dict.fromkeys(one.mutant.op for one in scores):
        lines.append(row(name, [one for one in scores if one.mutant.op == name]))
    lines += [row("all", scores), ""]
    if trials:
        lines.append(f"Correct kernels, every form of every op in each dtype: {trials:,} trials, {alarms} failed.")
    return "\n".join(lines)


def row(name: str, scores: list[Score]) -> str:
    """How many of an op's bugs each of them catches."""
    judged = [one.conventions for one in scores if one.conventions is not None]
    counts: Iterable = [sum(name in failing for failing in judged) if judged else "–" for name in CONVENTIONS]
    cells = [name, len(scores), sum(bool(one.caught_by) for one in scores), *counts]
    return f"| {' | '.join(map(str, cells))} |"


def details(one: Score) -> dict:
    """One bug for the JSON file."""
    return {**one.mutant._asdict(), "caught_by": one.caught_by, "conventions_that_fail_it": one.conventions}


if __name__ == "__main__":
    main()
