"""Features go together: every pair of choices, each with families that remember in different ways.

`python -m bench.lattice` tries all combinations of all families.
"""

import itertools
import re
from pathlib import Path

import pytest
import tiny

from bench import lattice

FAMILIES = ("deepseek_v2", "mamba2", "jamba")
REFUSED = {("deepseek_v2", "sinks")}
REFUSED |= {("mamba2", memory) for memory, how in lattice.MEMORIES.items() if "cache" in how}


def pairwise() -> list[tuple[str, lattice.Cell]]:
    """Cells by family in which every pair of choices that is not refused occurs, chosen one by one."""
    cells = [
        (family, cell)
        for family, cell in itertools.product(FAMILIES, lattice.CELLS)
        if (family, cell.memory) not in REFUSED
    ]

    def pairs(family: str, cell: lattice.Cell) -> set[tuple[str, str]]:
        return set(itertools.combinations((family, cell.memory, cell.way, cell.drafts), 2))

    missing, chosen = set().union(*(pairs(*cell) for cell in cells)), []
    while missing:
        best = max(cells, key=lambda cell: len(pairs(*cell) & missing))
        missing -= pairs(*best)
        chosen.append(best)
    return chosen


CHOSEN = pairwise()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("quick_programs")
def test_what_is_combined_says_to_the_bit_what_one_request_says_alone(family, tmp_path):
    tried = lattice.Lattice(lattice.opened(family, tmp_path))
    for cell in [cell for other, cell in CHOSEN if other == family]:
        assert tried.holds(cell), cell


@pytest.mark.usefixtures("quick_programs")
def test_what_is_combined_is_compared_at_all(tmp_path, monkeypatch):
    tried = lattice.Lattice(lattice.opened("llama", tmp_path))
    wrong = [[7] * 12] * len(lattice.PROMPTS)
    monkeypatch.setattr(tried, "expected", lambda memory: wrong)
    assert not tried.holds(lattice.Cell("paged", "together", "chains"))
    assert tried.preempted > 0


def test_the_table_has_a_line_for_every_combination():
    text = (Path(__file__).parents[2] / "minillm" / "README.md").read_text()
    body = text.partition(lattice.BEGIN)[2].partition(lattice.END)[0]
    rows = re.findall(r"^\| ([^|]+) \| (alone|together) \| (.*) \|$", body, re.M)
    assert {(memory, way) for memory, way, _ in rows} == set(itertools.product(lattice.MEMORIES, lattice.WAYS))
    counts = [re.fullmatch(r"(\d+) of (\d+)", cell) for *_, cells in rows for cell in cells.split(" | ")]
    assert len(counts) == len(lattice.CELLS)
    assert all(count and count[1] == count[2] for count in counts)
    assert max(int(count[2]) for count in counts if count) == len(tiny.FAMILIES)
    assert lattice.refusal() in body
