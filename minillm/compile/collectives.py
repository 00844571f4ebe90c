"""Collectives: what devices send each other, as it stands in compiled HLO, and what it costs them.

A device of n receives, of an array of so many bytes (as the operation gives it back), with the algorithms that send
least: Thakur et al. 2005, doi:10.1177/1094342005051521.
"""

import math
import re
from collections import Counter

WIDTHS = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "f8": 1,
    "s16": 2,
    "u16": 2,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
}
KINDS = "all-reduce all-gather reduce-scatter all-to-all collective-permute".split()
CALL = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(?:-start)?\((.*)")
SHAPE = re.compile(r"\b([a-z]+\d+)\w*\[([\d,]*)\]")
LOOP = re.compile(r" while\(.*body=%?([\w.-]+)(?:.*known_trip_count\D+(\d+))?")
GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]*)\}|\[(\d+),(\d+)\])")


def received(kind: str, n: int, nbytes: float) -> int:
    """Bytes that each of n devices receives in a collective whose result has nbytes on each."""
    share = {"all-reduce": 2 * (n - 1) / n, "reduce-scatter": n - 1, "collective-permute": n > 1}
    return round(nbytes * share.get(kind, (n - 1) / n))


def collectives(hlo: str) -> tuple[Counter[str], Counter[str]]:
    """How often each kind runs in compiled HLO, and the bytes that each device receives.

    What stands in a loop counts as often as the loop turns where the compiler knows that, else once.
    """
    bodies: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in hlo.splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.-]+) .*\{$", line)
        if head:
            lines = bodies.setdefault(head[1], [])
        lines.append(line)
    turns = {body: int(times or 1) for body, times in LOOP.findall(hlo)}
    calls: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for body, its in bodies.items():
        for line in its:
            if found := CALL.search(line):
                shape, kind, rest = found.groups()
                times = turns.get(body, 1)
                calls[kind] += times
                total[kind] += times * received(kind, group_size(rest), result_bytes(shape))
    return calls, total


def group_size(rest: str) -> int:
    """How many devices take part in a call; a permute goes from one to another."""
    found = GROUPS.search(rest)
    if found is None:
        return 2
    return len(found[1].split(",")) if found[1] else int(found[3])


def result_bytes(shape: str) -> float:
    """Bytes of the largest array in a result: one that was started holds the operand as well."""
    sizes = [
        WIDTHS.get(kind, 8) * math.prod(int(one) for one in dims.split(",") if one)
        for kind, dims in SHAPE.findall(shape)
    ]
    return max(sizes)
