"""All experiments, one after the other, and what came of them: `python -m bench`.

The short version of each; `--only NAME` runs one or a few of them, `--report` none.
bench/REPORT.md then shows every ratio in results/ with its spread, and the pictures.
"""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from .bars import table_of_bars
from .peers import PEER_PACKAGES
from .report import RESULTS, ratios_in, spread

REPORT = Path(__file__).parent / "REPORT.md"
MISSED = "Why some are missed is in [README.md](README.md#what-is-missed)."
PEERS = ["--peers"] if all(find_spec(package) for package in PEER_PACKAGES) else []
# What a short version is of each experiment.
SHORT: dict[str, list[str]] = {
    "decode": ["--rounds", "8", *PEERS],
    "mamba": ["--rounds", "3", *PEERS],
    "batching": ["--rounds", "3", *PEERS],
    "speculation": ["--rounds", "3"],
    "growth": ["--rounds", "3"],
    "pruning": ["--rounds", "6"],
    "divergence": [],
    "planning": [],
    "quality": ["--documents", "12", "--titles", "12", "--rounds", "3"],
    "startup": ["--rounds", "3", *PEERS],
    "dispatch": ["--rounds", "5"],
    "ops": ["--rounds", "3"],
    "roofline": ["--rounds", "3"],
    **({"profile": PEERS} if shutil.which("perf") else {}),
    "success": ["--rounds", "3", "--documents", "12"],
    "techniques": ["--rounds", "3", "--documents", "6"],  # the last: it takes from others
}


@click.command(help=__doc__)
@click.option("--only", multiple=True, type=click.Choice([*SHORT]), help="Only this one; may be repeated.")
@click.option("--report", "only_report", is_flag=True, help="Run nothing, write the report of what is there.")
def main(only: tuple[str, ...], only_report: bool) -> None:
    failed = []
    for name in () if only_report else only or SHORT:
        click.echo(f"== {name}", err=True)
        if subprocess.run([sys.executable, "-m", f"bench.{name}", *SHORT[name]]).returncode:
            failed.append(name)
    REPORT.write_text(report())
    click.echo(f"wrote {REPORT}")
    if failed:
        sys.exit(f"these failed: {', '.join(failed)}")


def report() -> str:
    """Every result there is, in Markdown."""
    parts = ["# What was measured", "", (__doc__ or "").splitlines()[0], ""]
    parts += ["## What must hold", "", *markdown(table_of_bars()), MISSED, ""]
    for path in sorted(RESULTS.glob("*.json")):
        parts += section(path.stem, json.loads(path.read_text()))
    return "\n".join(parts)


def section(name: str, result: dict[str, Any]) -> list[str]:
    """One result: its ratios, its picture, and where it was found."""
    lines = [f"## {name}", ""]
    if "table" in result:
        lines += markdown(result["table"])
    elif found := dict(ratios_in(result)):
        lines += ["| ratio of speeds | median (95 % of it) |", "|---|---|"]
        lines += [f"| {what} | {spread(one)} |" for what, one in found.items()] + [""]
    if (RESULTS / f"{name}.png").exists():
        lines += [f"![{name}](results/{name}.png)", ""]
    machine, versions = result.get("machine", {}), result.get("versions", {})
    where = ", ".join(f"{value} {key}" if key == "cores" else str(value) for key, value in machine.items())
    what = ", ".join(f"{package} {version}" for package, version in versions.items())
    return [*lines, f"[All figures](results/{name}.json). {where}; {what}", ""]


def markdown(table: dict[str, Any]) -> list[str]:
    """A result's own table."""
    columns, rows = table["columns"], table["rows"]
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(line)} |" for line in lines] + [""]


if __name__ == "__main__":
    main()
