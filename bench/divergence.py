"""Where drafts and batches say another token than plain greedy decoding: `python -m bench.divergence`.

Sums in floating point depend on the shape of the program, so outside of exact mode two tokens that are almost
equally likely may change places. Counts how often, and by how much the other token is less likely at each such
place. The bound: the logits of two tokens, in the other program and in the one that is asked for the gap, may each
be off by ROUNDING of the largest logit. A gap above it is an error, and so is a text that ends too soon.
Writes results/divergence.json.
"""

from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

import minillm
from minillm.engine import Engine
from minillm.lm import LM

from .decode import TEXT
from .report import where_and_what, write

# A logit of L layers is the end of about 4 L sums, each off by about one rounding (2^-24) in a random direction:
# sqrt(4 L) roundings together, 11 for 30 layers. 64 is six times that, as errors also grow on their way.
ROUNDING = 64 * 2.0**-24

Prompts = list[list[int]]
Way = Callable[[LM, Prompts, int], list[list[int]]]
END = -1  # stands for whatever token ended a text


def ended(tokens: list[int], reason: str | None) -> list[int]:
    """The tokens of a text, and END if one ended it."""
    return [*tokens, END] if reason == "stop" else tokens


def plain(lm: LM, prompts: Prompts, n: int, draft: str | None = None) -> list[list[int]]:
    """One after the other, a token a pass."""
    texts = [lm.generate(prompt, max_tokens=n, temperature=0.0, draft=draft) for prompt in prompts]
    return [ended(one.tokens, one.finish_reason) for one in texts]


def drafted(lm: LM, prompts: Prompts, n: int) -> list[list[int]]:
    """One after the other, with drafts looked up."""
    return plain(lm, prompts, n, "prompt-lookup")


def batched(lm: LM, prompts: Prompts, n: int) -> list[list[int]]:
    """Eight at once."""
    engine = Engine(lm, max_batch=8)
    requests = [engine.submit(prompt, max_tokens=n, temperature=0.0) for prompt in prompts]
    engine.run()
    return [ended(request.tokens, request.finish_reason) for request in requests]


WAYS: dict[str, Way] = {"drafted": drafted, "batched": batched}


def divergences(
    lm: LM, prompts: Prompts, expected: list[list[int]], found: list[list[int]]
) -> list[dict[str, Any]]:
    """The first difference of each text: where, by how much the other token is less likely, and the bound."""
    places = []
    for prompt, one, other in zip(prompts, expected, found, strict=True):
        pairs = enumerate(zip_longest(one, other))
        place = next((i for i, (a, b) in pairs if a != b), None)
        if place is not None:
            logits = lm.logits([[*prompt, *one[:place]]])[0, -1]
            said = other[place] if place < len(other) else None
            score = -np.inf if said is None else logits[[*lm.ends] if said == END else said].max()
            bound = 4 * ROUNDING * float(np.abs(logits).max())
            places.append({"place": place, "gap": float(logits.max() - score), "bound": bound})
    return places


@click.command(help=__doc__)
@click.option("--model", default="smollm2-135m", show_default=True, help="As for minillm generate.")
@click.option("--prompts", default=24, show_default=True, type=click.IntRange(1), help="How many.")
@click.option("--tokens", default=96, show_default=True, type=click.IntRange(1), help="New tokens of each.")
def main(model: str, prompts: int, tokens: int) -> None:
    reference, lm = minillm.load(model), minillm.load(model)  # drafts have its matrices stored differently
    texts = some_prompts(reference, prompts)
    expected = plain(reference, texts, tokens)
    report: dict[str, Any] = {"tokens": sum(map(len, expected)), "texts": prompts, "model": model}
    table = Table("", "texts", "part", "largest gap", "bound")
    for name, way in WAYS.items():
        found = divergences(reference, texts, expected, way(lm, texts, tokens))
        report[name] = found
        gap = max((one["gap"] for one in found), default=0.0)
        table.add_row(name, str(prompts), str(len(found)), f"{gap:.1e}", f"{bound_of(found):.1e}")
    report |= where_and_what()
    Console(width=100).print(table)
    write("divergence", report)
    if any(one["gap"] > one["bound"] for name in WAYS for one in report[name]):
        raise click.ClickException("a token differs that was no near-tie")


def bound_of(found: list[dict[str, Any]]) -> float:
    """The smallest bound of some places."""
    return min((one["bound"] for one in found), default=float("nan"))


def some_prompts(lm: LM, n: int) -> Prompts:
    """Pieces of 16 tokens of one text."""
    assert lm.tokenizer is not None
    ids = lm.tokenizer.encode(TEXT)
    return [ids[start : start + 16] for start in np.linspace(0, len(ids) - 16, n, dtype=int).tolist()]


if __name__ == "__main__":
    main()
