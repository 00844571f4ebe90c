"""What all experiments say in the same words: ratios with their spread, the machine, the versions.

A ratio compares two turns of one round. It stands in a result as {"median": …, "interval_95": [low, high]}, and is
always that of two speeds, so that more is better: that is how `bench.check` and `python -m bench` find them.
"""

import json
import os
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from minillm.errors import UserError

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("minillm", "jax", "jaxlib", "flax", "numpy")


def ratio(ratios: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """The median of the rounds and its 95 % interval."""
    values = np.asarray(ratios, np.float64)
    return {"median": rounded(np.median(values)), "interval_95": [rounded(end) for end in median_interval(values)]}


def median_interval(values: np.ndarray) -> tuple[float, float]:
    """The bootstrap 95 % interval of the median of values [n]."""
    draws = np.random.default_rng(0).choice(values, (10_000, len(values)))
    low, high = np.percentile(np.median(draws, axis=1), (2.5, 97.5))
    return float(low), float(high)


def ratios_in(report: Any, name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every ratio of a result, by what it is of."""
    if isinstance(report, dict) and "interval_95" in report:
        yield name, report
    elif isinstance(report, dict):
        for key, value in report.items():
            yield from ratios_in(value, f"{name}, {key}" if name else key)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, Any]:
    """What people read of a result: it stands in it as `table`, and in REPORT.md in place of the ratios."""
    return {"columns": list(columns), "rows": [list(row) for row in rows]}


def show_table(found: dict[str, Any], width: int = 140) -> None:
    """Print a result's table."""
    shown = Table(*found["columns"])
    for row in found["rows"]:
        shown.add_row(*row)
    Console(width=width).print(shown)


def where_and_what(*peers: str) -> dict[str, Any]:
    """The machine, and the versions of what was measured on it."""
    versions = {"python": platform.python_version()} | {name: version(name) for name in (*PACKAGES, *peers)}
    return {
        "machine": {"cpu": cpu_model(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": versions,
    }


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


def write(name: str, report: dict[str, Any]) -> None:
    """Put a result into results/NAME.json, in one go."""
    RESULTS.mkdir(exist_ok=True)
    draft = RESULTS / f"{name}.tmp"
    draft.write_text(json.dumps(report, indent=2) + "\n")
    draft.replace(RESULTS / f"{name}.json")


def read(name: str) -> dict[str, Any]:
    """The result of another experiment; UserError says how to get one that is not there."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        raise UserError(f"{path} is not there; run: python -m bench --only {name.partition('-')[0]}")
    return json.loads(path.read_text())


def pyplot() -> Any:
    """matplotlib's pyplot, drawing into files; None, and a line that says so, if it is not installed."""
    try:
        import matplotlib  # pyright: ignore[reportMissingImports]
    except ImportError:
        print("no picture: pip install -e '.[plots]'")
        return None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt  # pyright: ignore[reportMissingImports]

    return plt


def spread(found: dict[str, Any], digits: int = 2) -> str:
    """A ratio for people."""
    return f"{found['median']:.{digits}f}x ({span(found['interval_95'], digits)})"


def span(ends: Sequence[float], digits: int) -> str:
    return " – ".join(f"{end:.{digits}f}" for end in ends)


def rounded(value: Any) -> float:
    """Three digits after the point."""
    return round(float(value), 3)
