"""What a small model can do, measured on texts it has not seen: `python -m weights.check tiny-transformer`.

    bits per byte   of held-out recipes and scripture, the end of each text included
    reliability     of 100 recipes written for unseen titles: how many are well formed, and how many of the
                    ingredients that they list their steps name, by any word of theirs
    copied          the longest run of words that also stands in a document of the training text

A recipe is well formed if it has a title, ingredients with amounts, steps numbered from 1 on, and an end.
"""

import json
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import click
import numpy as np

import minillm
from minillm.evaluate import quality
from minillm.lm import LM
from minillm.texts import Document, held_out

from .data import documents, is_held_out, uses

TEMPERATURE = 0.7
LONGEST = 400  # tokens of a recipe
INGREDIENT = re.compile(r"- (\d[\d.]*) (\w+) (\S.*)")
STEP = re.compile(r"(\d+)\. \S.*")


class Verdict(NamedTuple):
    """Whether a recipe is well formed, how many ingredients it lists, and how many of them its steps use."""

    well_formed: bool
    listed: int
    used: int


def judge(text: str, ended: bool) -> Verdict:
    """The verdict on a text; `ended` says that the model put its end there."""
    head, _, rest = text.partition("\n\nIngredients:\n")
    listed, _, last = rest.partition("\n\nSteps:\n")
    ingredients = [INGREDIENT.fullmatch(line) for line in listed.splitlines()]
    steps = [STEP.fullmatch(line) for line in last.splitlines()]
    names = [found[3] for found in ingredients if found]
    numbers = [int(found[1]) for found in steps if found]
    whole = len(names) == len(ingredients) >= 2 and len(numbers) == len(steps) >= 2
    in_order = numbers == list(range(1, len(numbers) + 1))
    title = re.fullmatch(r"Recipe: \S.*", head) is not None
    return Verdict(ended and title and whole and in_order, len(names), sum(uses(last, name) for name in names))


def recipe(lm: LM, title: str, seed: int) -> tuple[str, bool]:
    """A recipe for a title, and whether the model ended it."""
    prompt = f"Recipe: {title}\n"
    out = lm.generate(prompt, max_tokens=LONGEST, temperature=TEMPERATURE, seed=seed)
    return prompt + out.text, out.finish_reason == "stop"


def bits_per_byte(lm: LM, texts: Iterable[Document]) -> float:
    """How many bits the model needs for a byte of these texts."""
    assert lm.tokenizer is not None
    found = quality(lm.model, lm.tokenizer, [document.text for document in texts], lm.config.context)
    return found["bits_per_byte"].value


def longest_copy(texts: list[str], learned: list[str]) -> int:
    """Words of the longest run in one of the texts that also stands in one of those learned."""
    low, high = 0, max(len(text.split()) for text in texts)
    while low < high:  # a run of n words has in it one of n - 1
        n = (low + high + 1) // 2
        known = {run for text in learned for run in runs(text, n)}
        if any(run in known for text in texts for run in runs(text, n)):
            low = n
        else:
            high = n - 1
    return low


def runs(text: str, n: int) -> Iterator[int]:
    """Every n words in a row, as a hash."""
    words = text.split()
    return (hash(tuple(words[i : i + n])) for i in range(len(words) - n + 1))


def measure(lm: LM, samples: int) -> dict:
    """All figures of a model."""
    unseen = held_out("recipes")[:samples]
    written = [recipe(lm, document.title, seed) for seed, document in enumerate(unseen)]
    verdicts = [judge(*one) for one in written]
    learned = [document.text for document in documents() if not is_held_out(document)]
    return {
        "bits_per_byte": {
            source: round(bits_per_byte(lm, held_out(source)), 4) for source in ("recipes", "scripture")
        },
        "samples": len(verdicts),
        "well_formed": round(np.mean([verdict.well_formed for verdict in verdicts]).item(), 3),
        "ingredients_used": round(sum(v.used for v in verdicts) / sum(v.listed for v in verdicts), 3),
        "longest_copied_words": longest_copy([text for text, _ in written], learned),
    }


def acceptance(draft: LM, target: LM, samples: int) -> float:
    """The share of `draft`'s tokens that `target` accepts in speculative decoding of its recipes, in expectation.

    A token drawn from q is accepted with probability min(1, p / q) (Leviathan et al. 2023, arXiv:2211.17192), so
    the share is the mean of sum_v min(p_v, q_v) over the places of texts that the target writes.
    """
    assert target.tokenizer is not None
    shares = []
    for seed, document in enumerate(held_out("recipes")[:samples]):
        ids = target.tokenizer.encode(recipe(target, document.title, seed)[0])[: target.config.context]
        p, q = (tempered(lm.logits([ids])[0]) for lm in (target, draft))
        shares.append(np.minimum(p, q).sum(axis=-1)[len(target.tokenizer.encode(f"Recipe: {document.title}\n")) :])
    return float(np.concatenate(shares).mean())


def tempered(logits: np.ndarray) -> np.ndarray:
    """Probabilities at TEMPERATURE from logits [t, v]."""
    weights = np.exp((logits - logits.max(axis=-1, keepdims=True)).astype(np.float64) / TEMPERATURE)
    return weights / weights.sum(axis=-1, keepdims=True)


@click.command(help=__doc__)
@click.argument("model")
@click.option("--samples", default=100, show_default=True, type=click.IntRange(1), help="Recipes to write.")
@click.option("--target", help="A model that MODEL drafts for: show only how much of its drafts would be accepted.")
def main(model: str, samples: int, target: str | None) -> None:
    """Print the figures as JSON."""
    lm = minillm.load(model)
    found = measure(lm, samples) if target is None else {"accepted": acceptance(lm, minillm.load(target), samples)}
    click.echo(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
