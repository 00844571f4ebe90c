"""Whether anything became slower: `python -m bench.check` after experiments were run again.

Compares every ratio in results/ with the one that is committed. Both have a 95 % interval, which says how the
rounds of one run differ; two runs differ by more. So a ratio is worse if its whole interval lies below the
committed one by another tenth. One that is gone counts as worse, since nothing shows that it is not. Exit code 1
if one is.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from minillm.errors import UserError

from .report import RESULTS, ratios_in, spread

BETWEEN_RUNS = 1.1  # times as fast as another run of the same code may be
FAILED = {"worse", "gone"}


@click.command(help=__doc__)
@click.option("--against", default="HEAD", show_default=True, help="The commit to compare with.")
def main(against: str) -> None:
    try:
        compared = [(name, now, before) for name, now, before in results(against) if now != before]
    except UserError as error:
        click.echo(f"bench.check: {error}", err=True)
        sys.exit(2)
    table, verdicts = Table("", "ratio", "now", "committed", ""), set()
    for name, now, before in compared:
        for what, one, other in pairs(now, before):
            verdict = judged(one, other)
            verdicts.add(verdict)
            table.add_row(name, what, *(spread(each) if each else "–" for each in (one, other)), verdict)
    Console(width=140).print(table if table.rows else "no ratio differs from the committed one")
    for name, now, before in compared:
        for what in elsewhere(now, before):
            print(f"{name}: {what}")
    sys.exit(1 if verdicts & FAILED else 0)


def results(commit: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Every result that a commit has: its name, what it is now, {} if it is not there, and what it was."""
    names = [name for name in git("ls-tree", "--name-only", commit, "./").splitlines() if name.endswith(".json")]
    if not names:
        raise UserError(f"{commit} has no results to compare with; name another commit with --against")
    for name in names:
        path = RESULTS / name
        now = json.loads(path.read_text()) if path.exists() else {}
        yield Path(name).stem, now, json.loads(git("show", f"{commit}:./{name}"))


def git(*command: str) -> str:
    """What git says in the folder of results; UserError if it does not know the commit."""
    said = subprocess.run(["git", *command], cwd=RESULTS, capture_output=True, text=True)
    if said.returncode:
        raise UserError(f"git {' '.join(command)}: {said.stderr.strip()}; expected a commit of this repository")
    return said.stdout


def pairs(now: dict[str, Any], before: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Every ratio of two results of one experiment, None where one has it not."""
    new, old = dict(ratios_in(now)), dict(ratios_in(before))
    for what in old | new:
        yield what, new.get(what), old.get(what)


def judged(now: dict[str, Any] | None, before: dict[str, Any] | None) -> str:
    """What became of a ratio: worse, better, same, gone or new."""
    if now is None or before is None:
        return "gone" if now is None else "new"
    (low, high), (least, most) = now["interval_95"], before["interval_95"]
    if not BETWEEN_RUNS * high >= least:  # NaN is worse, too
        return "worse"
    return "better" if low > BETWEEN_RUNS * most else "same"


def elsewhere(now: dict[str, Any], before: dict[str, Any]) -> Iterator[str]:
    """What else differs than the code: the machine, and versions of packages."""
    for kind in ("machine", "versions"):
        new, old = now.get(kind, {}), before.get(kind, {})
        for what in sorted(new.keys() & old.keys()):
            if new[what] != old[what] and what != "minillm":
                yield f"{what} is {new[what]} now and was {old[what]}"


if __name__ == "__main__":
    main()
