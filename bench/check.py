"""Whether anything became slower: `python -m bench.check` after experiments were run again.

Compares every ratio in results/ with the one that is committed. Both have a 95 % interval; a ratio is worse if its
whole interval lies below the committed one. Exit code 1 if one is.
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

from .report import RESULTS, ratios_in, spread

Ratios = dict[str, dict[str, Any]]


@click.command(help=__doc__)
@click.option("--against", default="HEAD", show_default=True, help="The commit to compare with.")
def main(against: str) -> None:
    table, worse = Table("", "ratio", "now", "committed", ""), 0
    for name, now, before in changed(against):
        for what in now.keys() & before.keys():
            verdict = judged(now[what], before[what])
            worse += verdict == "worse"
            table.add_row(name, what, spread(now[what]), spread(before[what]), verdict)
    Console(width=140).print(table if table.rows else "no ratio differs from the committed one")
    sys.exit(1 if worse else 0)


def changed(commit: str) -> Iterator[tuple[str, Ratios, Ratios]]:
    """Results that are not those of a commit: their name, the ratios now, and those before."""
    for path in sorted(RESULTS.glob("*.json")):
        before = committed(path, commit)
        if before is not None and before != path.read_text():
            yield path.stem, dict(ratios_in(json.loads(path.read_text()))), dict(ratios_in(json.loads(before)))


def committed(path: Path, commit: str) -> str | None:
    """A file as a commit has it, None if it has none."""
    shown = subprocess.run(
        ["git", "show", f"{commit}:./{path.name}"], cwd=path.parent, capture_output=True, text=True
    )
    return shown.stdout if shown.returncode == 0 else None


def judged(now: dict[str, Any], before: dict[str, Any]) -> str:
    """`worse` or `better` if the intervals have nothing in common, `same` otherwise."""
    (low, high), (least, most) = now["interval_95"], before["interval_95"]
    return "worse" if high < least else "better" if low > most else "same"


if __name__ == "__main__":
    main()
