"""Which features go together, and whether nothing is lost: `python -m bench.lattice`.

Every family, from its tiny random checkpoint, with every kind of memory, one request alone or several at once,
with no drafts, chains or trees of them. In exact mode all must say, to the bit, what a request says alone, without
drafts, in contiguous memory. The drafter is an adversary: it knows what is to come and errs on purpose, so that
every round keeps some and rejects some; where pages are few, requests lose theirs and start again.

Writes the table in minillm/README.md; `--check` compares with it instead.
"""

import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.progress import track

import minillm
from minillm.engine import Engine
from minillm.errors import UserError
from minillm.lm import LM
from minillm.speculative import Tree
from tests import tiny

README = Path(__file__).parent.parent / "minillm" / "README.md"
BEGIN, END = "<!-- python -m bench.lattice -->\n", "<!-- end -->\n"

CONTEXT, ROWS, PAGE = 80, 3, 4
PAGES = 21  # the longest request fits, with little beside it
GREEDY: dict[str, Any] = {"max_tokens": 12, "temperature": 0.0}
DRAWN = GREEDY | {"temperature": 0.9, "top_p": 0.95, "seed": 1}
PENALISED = DRAWN | {"repeat_penalty": 1.2, "frequency_penalty": 0.1, "seed": 2}
OPTIONS = (GREEDY, DRAWN, GREEDY, PENALISED, GREEDY)
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(3, 50, n).tolist() for n in (9, 1, 66, 17, 3)]  # kivi codes nothing in less than 64

MEMORIES: dict[str, dict[str, Any]] = {
    "contiguous": {"kind": "contiguous"},
    "paged": {"kind": "paged", "n_pages": PAGES},
    "contiguous, int8": {"kind": "contiguous", "cache": "int8"},  # fp8 is the same but for the codes
    "paged, fp8": {"kind": "paged", "n_pages": PAGES, "cache": "fp8"},
    "kivi2": {"cache": "kivi2"},
    "sinks": {"cache": "sinks:20"},
    "paged, W8A8 weights": {"kind": "paged", "n_pages": PAGES, "quant": "w8a8"},
}
WAYS = ("alone", "together")
DRAFTS = ("none", "chains", "trees")


@dataclass(frozen=True)
class Cell:
    """One combination: keys of MEMORIES, WAYS and DRAFTS."""

    memory: str
    way: str
    drafts: str


CELLS = [Cell(*one) for one in itertools.product(MEMORIES, WAYS, DRAFTS)]


@dataclass
class Foreseeing:
    """Knows the text that is to come: its drafts are right, but for a wrong token at every `wrong`-th place."""

    text: list[int]
    wrong: int = 4

    def draft(self, text: Sequence[int], most: int) -> Tree:
        """A chain."""
        tokens = self.text[len(text) : len(text) + most]
        right = [token if (len(text) + i) % self.wrong else (token + 1) % 50 for i, token in enumerate(tokens)]
        return Tree(right, list(range(-1, len(right) - 1)))


@dataclass
class Doubting(Foreseeing):
    """The same with a wrong sibling before every token, so that the path through the tree leaps."""

    def draft(self, text: Sequence[int], most: int) -> Tree:
        """A tree."""
        chain, tree, last = super().draft(text, most // 2).tokens, Tree(), -1
        for token in chain:
            tree.child(last, (token + 1) % 50)
            last = tree.child(last, token)
        return tree


class Lattice:
    """One family's combinations; what requests say alone is found out once for every way to store numbers."""

    def __init__(self, lm: LM):
        lm.config = replace(lm.config, eos=())
        self.lms: dict[str | None, LM] = {None: lm}
        self.plain, self.preempted = {}, 0

    def expected(self, memory: str) -> list[list[int]]:
        """What each prompt is continued with, alone, without drafts, in plain memory that stores numbers alike."""
        numbers = {key: MEMORIES[memory].get(key) for key in ("cache", "quant")}
        name = tuple(numbers.values())
        if name not in self.plain:
            engine = self.engine(kind="contiguous", **numbers)
            self.plain[name] = [
                engine.submit(prompt, **options).wait().tokens
                for prompt, options in zip(PROMPTS, OPTIONS, strict=True)
            ]
        return self.plain[name]

    def engine(self, quant: str | None = None, **how: Any) -> Engine:
        """An exact engine of a few rows, with weights by a recipe."""
        if quant and quant not in self.lms:
            self.lms[quant], _ = self.lms[None].quantize(quant)
        return Engine(self.lms[quant], max_batch=ROWS, context=CONTEXT, page_size=PAGE, exact=True, **how)

    def holds(self, cell: Cell) -> bool:
        """Whether a combination says what it should; UserError if it is refused."""
        expected, drafter = self.expected(cell.memory), {"chains": Foreseeing, "trees": Doubting}.get(cell.drafts)
        engine, said = self.engine(**MEMORIES[cell.memory]), []
        for prompt, tokens, options in zip(PROMPTS, expected, OPTIONS, strict=True):
            request = engine.submit(prompt, draft=drafter and drafter([*prompt, *tokens]), **options)
            said.append(request.wait() if cell.way == "alone" else request)
        engine.run()
        self.preempted += sum(request.preempted for request in said)
        return [request.tokens for request in said] == expected


def opened(family: str, folder: Path) -> LM:
    """The tiny model of a family."""
    tiny.unpacked(f"{family}_0", folder)
    return minillm.load(folder)


def outcomes(family: str) -> dict[Cell, str]:
    """How each combination went: `same`, `other`, or the sentence with which it was refused."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        lattice = Lattice(opened(family, Path(folder)))
        for cell in CELLS:
            try:
                found[cell] = "same" if lattice.holds(cell) else "other"
            except UserError as error:
                found[cell] = str(error)
    return found


def refusal() -> str:
    """The sentence that refuses a memory which cannot be lossless, after seeing it run where that is allowed."""
    with tempfile.TemporaryDirectory() as folder:
        lm = opened("llama", Path(folder))
        Engine(lm, context=CONTEXT, cache="h2o:20", lossy=True).submit(PROMPTS[0], **GREEDY).wait()
        try:
            Engine(lm, context=CONTEXT, cache="h2o:20")
        except UserError as error:
            return str(error)
    raise AssertionError("h2o was not refused")


def table(found: dict[str, dict[Cell, str]]) -> str:
    """The outcomes of all families as Markdown."""
    lines = [f"| memory | requests | {' | '.join(f'drafts: {one}' for one in DRAFTS)} |", "|---" * 5 + "|"]
    for memory, way in itertools.product(MEMORIES, WAYS):
        outcomes = [[one[Cell(memory, way, drafts)] for one in found.values()] for drafts in DRAFTS]
        counts = [f"{one.count('same')} of {len(one) - refused(one)}" for one in outcomes]
        lines.append(f"| {memory} | {way} | {' | '.join(counts)} |")
    sentences: dict[str, list[str]] = {}
    for family, one in found.items():
        for sentence in sorted({outcome for outcome in one.values() if outcome not in ("same", "other")}):
            sentences.setdefault(sentence, []).append(family)
    lines += ["", "Refused, with these words:", ""]
    lines += [f"- {', '.join(families)}: {sentence}" for sentence, families in sentences.items()]
    return "\n".join([*lines, f"- all: {refusal()}", ""])


def refused(outcomes: list[str]) -> int:
    """How many are neither `same` nor `other`."""
    return sum(one not in ("same", "other") for one in outcomes)


@click.command()
@click.option("--check", is_flag=True, help="Only compare with the table that is there; fails if it differs.")
@click.option("--share", metavar="K/N", help="Only every N-th family, from the K-th on, and no table.")
def main(check: bool, share: str | None) -> None:
    """Try every combination of every family, and write down how it went."""
    k, n = map(int, (share or "1/1").split("/"))
    families = tiny.FAMILIES[k - 1 :: n]
    with get_context("spawn").Pool(2) as pool:
        tried = track(pool.imap(outcomes, families), "families", len(families))
        found = dict(zip(families, tried, strict=True))
    text = README.read_text()
    before, _, rest = text.partition(BEGIN)
    old, _, after = rest.partition(END)
    new = table(found)
    other = [f"{family}: {cell}" for family, one in found.items() for cell, how in one.items() if how == "other"]
    click.echo(new)
    if other:
        raise click.ClickException("these say something else: " + "; ".join(other))
    if share:
        return
    if check and new != old:
        raise click.ClickException("minillm/README.md has another table; run python -m bench.lattice")
    if not check:
        README.write_text(before + BEGIN + new + END + after)


if __name__ == "__main__":
    main()
