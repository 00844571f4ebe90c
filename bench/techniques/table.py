"""The rows for people: a line a technique, and what a success costs with none of them."""

from typing import Any

from ..report import spread, table
from ..success import PLAIN
from .rows import Row

COLUMNS = (
    "technique",
    "usually claimed",
    "roof, latency",
    "latency",
    "roof, throughput",
    "throughput",
    "KLD, nats",
    "verified",
    "cost of 1,000",
    "why it differs",
)
NOTHING = "–"


def table_of(found: dict[str, Row], success: dict[str, Any]) -> dict[str, Any]:
    """The table; success is the result of `bench.success`."""
    lines = [line(name, row, success["ways"].get(row.way)) for name, row in found.items()]
    none = verified(success["ways"][PLAIN])
    return table(COLUMNS, [*lines, ("none of them", "", "", "", "", "", "", *none, "")])


def line(name: str, row: Row, way: dict[str, Any] | None) -> tuple[str, ...]:
    """A technique, and how it fared in writing what can be verified."""
    return (
        name,
        row.claimed,
        predicted(row.roof_one),
        spread(row.one) if row.one else NOTHING,
        predicted(row.roof_several),
        spread(row.several) if row.several else NOTHING,
        row.kld if isinstance(row.kld, str) else f"{row.kld[0]:.4f}",
        *(verified(way) if way else (NOTHING, NOTHING)),
        row.why,
    )


def verified(way: dict[str, Any]) -> tuple[str, str]:
    """How many texts were, and what a thousand of those cost."""
    cost = way["cost_of_1000"]
    return f"{way['successes']} of {way['of']}", "none" if cost is None else f"{cost:.2f}"


def predicted(times: float | None) -> str:
    return NOTHING if times is None else f"{times:.1f}x"
