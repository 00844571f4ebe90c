"""What a verified success costs, with each technique: `python -m bench.success`.

tiny-transformer writes recipes for titles that no recipe of its training text has, at temperature 0.7. One is a
success if it is well formed and its steps use every ingredient that it lists, which a program can verify
(`weights.check`). Cost is the machine's time for all recipes, failures included, times its price, divided by the
successes: it is what quick answers that are wrong make dear. Each round has titles of its own, which all ways of
writing take by turns. Writes results/success.json.
"""

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import jax
import numpy as np

import minillm
from minillm.compress import distill
from minillm.compress.calibration import calibrated, windows
from minillm.compress.prune import without_channels
from minillm.config import Config
from minillm.engine import Engine
from minillm.evaluate import quality
from minillm.lm import LM
from minillm.model import Model
from minillm.texts import calibration, evaluation, held_out
from weights.check import LONGEST, TEMPERATURE, judge

from .pruning import SHARE
from .report import ratio, rounded, show_table, spread, table, where_and_what, write
from .timing import rotated, wait_for_quiet

MODEL, STUDENT = "tiny-transformer", "tiny-draft"  # the student was distilled from the model (`weights.train`)
GROUP = 12  # titles of a round
BATCH = 6  # recipes that are written at once, where several are
PLAIN, STATIC, CONTINUOUS = "plain", f"batches of {BATCH}", "continuous batching"
INT8, INT4, DRAFTED = "w8a8", "int4-g32", f"drafts by {STUDENT}"
PRUNED, RECOVERED, DISTILLED = "half the channels", "half the channels, taught again", STUDENT


class Written(NamedTuple):
    """A recipe: its text, whether the model ended it, and how many tokens it wrote."""

    text: str
    ended: bool
    tokens: int


Titles = dict[int, str]  # by the seed with which each is written
Writer = Callable[[Titles], list[Written]]


@click.command(help=__doc__)
@click.option(
    "--rounds", default=5, show_default=True, type=click.IntRange(1, 10), help=f"Of {GROUP} recipes each."
)
@click.option("--documents", default=40, show_default=True, type=click.IntRange(2), help="Texts for divergence.")
@click.option("--price", default=1.0, show_default=True, help="What an hour of this machine costs.")
@click.option("--recover", default=0, show_default=True, help="Steps in which what was pruned learns again.")
def main(rounds: int, documents: int, price: float, recover: int) -> None:
    ways, models = opened(recover)
    report = measure(ways, rounds, price)
    plain = minillm.load(MODEL)
    for name, other in models.items():
        report["ways"][name]["kld"] = divergence(other, plain, documents)
    report |= {
        "setting": {
            "rounds": rounds,
            "recipes": rounds * GROUP,
            "documents": documents,
            "price of an hour": price,
            "steps of recovery": recover,
            "temperature": TEMPERATURE,
            "model": MODEL,
        },
        **where_and_what(),
    }
    report["table"] = table_of(report)
    show_table(report["table"])
    write("success", report)


def opened(recover: int) -> tuple[dict[str, Writer], dict[str, Model]]:
    """Every way of writing, and the models that differ from the one in float32."""
    plain, student = minillm.load(MODEL), minillm.load(STUDENT)
    int8, int4 = (plain.quantize(recipe)[0] for recipe in (INT8, INT4))
    pruned = without_half(plain)
    lms = {PLAIN: plain, INT8: int8, INT4: int4, PRUNED: pruned, DISTILLED: student}
    if recover:
        lms[RECOVERED] = taught_again(pruned, plain, recover)
    ways: dict[str, Writer] = {name: partial(alone, lm, None) for name, lm in lms.items()}
    ways[DRAFTED] = partial(alone, minillm.load(MODEL), STUDENT)  # its matrices are stored differently
    several = minillm.load(MODEL)
    ways |= {STATIC: partial(in_batches, several), CONTINUOUS: partial(at_once, several)}
    return ways, {name: lm.model for name, lm in lms.items() if lm is not plain}


def without_half(lm: LM) -> LM:
    """The model less half of the channels of its feed-forward layers, not taught again."""
    assert lm.tokenizer is not None
    *_, inputs = calibrated(lm.model, iter(windows(lm.tokenizer, calibration(), lm.config.context)))
    return as_lm(lm, *without_channels(lm.model, lm.config, SHARE, inputs))


def taught_again(pruned: LM, teacher: LM, steps: int) -> LM:
    """What is left of a model after so many steps of learning from what the whole one writes and says."""
    assert teacher.tokenizer is not None
    lessons = distill.written(teacher.model, teacher.tokenizer, teacher.config.context)
    with tempfile.TemporaryDirectory() as folder:
        model = distill.recovered(pruned.model, teacher.model, lessons, steps, Path(folder) / "part.safetensors")
    return as_lm(teacher, model, pruned.config)


def as_lm(lm: LM, model: Model, config: Config) -> LM:
    """A model with the tokenizer of another."""
    weights: Future[Model] = Future()
    weights.set_result(model)
    return LM(config, lm.tokenizer, jax.eval_shape(lambda: model), weights)


def prompt_of(title: str) -> str:
    return f"Recipe: {title}\n"


def alone(lm: LM, draft: str | None, titles: Titles) -> list[Written]:
    """One after the other."""
    found = []
    for seed, title in titles.items():
        prompt = prompt_of(title)
        out = lm.generate(prompt, max_tokens=LONGEST, temperature=TEMPERATURE, seed=seed, draft=draft)
        found.append(Written(prompt + out.text, out.finish_reason == "stop", len(out.tokens)))
    return found


def at_once(lm: LM, titles: Titles) -> list[Written]:
    """BATCH at a time: who ends makes room for the next."""
    engine = Engine(lm, max_batch=BATCH, context=lm.config.context)
    requests = [
        engine.submit(prompt_of(title), max_tokens=LONGEST, temperature=TEMPERATURE, seed=seed)
        for seed, title in titles.items()
    ]
    engine.run()
    return [
        Written(prompt_of(title) + one.output.text, one.finish_reason == "stop", len(one.tokens))
        for one, title in zip(requests, titles.values(), strict=True)
    ]


def in_batches(lm: LM, titles: Titles) -> list[Written]:
    """BATCH at a time: the next ones begin when all have ended."""
    rest = [*titles.items()]
    batches = [dict(rest[i : i + BATCH]) for i in range(0, len(rest), BATCH)]
    return [one for batch in batches for one in at_once(lm, batch)]


def verified(one: Written) -> bool:
    """Whether a recipe is well formed and uses every ingredient that it lists."""
    verdict = judge(one.text, one.ended)
    return verdict.well_formed and verdict.used == verdict.listed


def measure(ways: dict[str, Writer], rounds: int, price: float) -> dict[str, Any]:
    """Play the rounds and report on them."""
    played: list[dict[str, tuple[float, list[Written]]]] = []
    for way in ways.values():
        way(dict([*titles_of(0).items()][:BATCH]))  # compiles
    for number in range(rounds):
        titles, turns = titles_of(number), {}
        for name in rotated([*ways], number):
            wait_for_quiet()
            began = time.perf_counter()
            texts = ways[name](titles)
            turns[name] = (time.perf_counter() - began, texts)
        played.append(turns)
    seconds = {name: np.array([turns[name][0] for turns in played]) for name in ways}
    tokens = {name: np.array([sum(one.tokens for one in turns[name][1]) for turns in played]) for name in ways}
    successes = {name: np.array([sum(map(verified, turns[name][1])) for turns in played]) for name in ways}
    well = {
        name: [judge(one.text, one.ended).well_formed for turns in played for one in turns[name][1]]
        for name in ways
    }
    speeds = {name: tokens[name] / seconds[name] for name in ways}
    pairs = [(name, PLAIN) for name in ways if name != PLAIN] + [(CONTINUOUS, STATIC)]
    return {
        "tokens_a_second": {f"{one} over {other}": ratio(speeds[one] / speeds[other]) for one, other in pairs},
        "successes_a_second": {
            f"{name} over {PLAIN}": together(successes[name], seconds[name], successes[PLAIN], seconds[PLAIN])
            for name in ways
            if name != PLAIN and successes[PLAIN].any()
        },
        "ways": {
            name: {
                "successes": int(successes[name].sum()),
                "of": rounds * GROUP,
                "well_formed": rounded(np.mean(well[name])),
                "seconds": rounded(seconds[name].sum()),
                "cost_of_1000": cost(seconds[name].sum(), successes[name].sum(), price),
            }
            for name in ways
        },
    }


def titles_of(number: int) -> Titles:
    """The titles of a round, by their seeds."""
    first = number * GROUP
    return {first + i: one.title for i, one in enumerate(held_out("recipes")[first : first + GROUP])}


def together(one: np.ndarray, seconds: np.ndarray, other: np.ndarray, others: np.ndarray) -> dict[str, Any]:
    """The ratio of one / seconds to other / others, each summed over rounds [n]; 95 % by drawing rounds again.

    Few successes a round would make the ratio of a single one meaningless. The other has a success at least.
    """
    drawn = np.random.default_rng(0).integers(0, len(one), (10_000, len(one)))
    sums = [counts[drawn].sum(axis=1) for counts in (one, seconds, np.maximum(other, 1e-9), others)]
    low, high = np.percentile(sums[0] / sums[1] * sums[3] / sums[2], (2.5, 97.5))
    whole = one.sum() / seconds.sum() * others.sum() / other.sum()
    return {"median": rounded(whole), "interval_95": [rounded(low), rounded(high)]}


def cost(seconds: float, successes: int, price: float) -> float | None:
    """Of 1,000 successes at a price an hour; None if there was none."""
    return rounded(1000 * seconds / successes * price / 3600) if successes else None


def divergence(model: Model, plain: LM, documents: int) -> list[float]:
    """KL(plain || model) in nats a token, and its 95 % interval."""
    assert plain.tokenizer is not None
    found = quality(model, plain.tokenizer, evaluation()[:documents], plain.config.context, plain.model)
    return [rounded(one) for one in found["kld_mean"]]


def table_of(report: dict[str, Any]) -> dict[str, Any]:
    """Every way beside the plain one."""
    rows = []
    for name, one in report["ways"].items():
        speed, rate = (
            report[what].get(f"{name} over {PLAIN}") for what in ("tokens_a_second", "successes_a_second")
        )
        rows.append(
            (
                name,
                spread(speed) if speed else "",
                f"{one['kld'][0]:.4f}" if "kld" in one else "",
                f"{one['well_formed']:.0%}",
                f"{one['successes']} of {one['of']}",
                "none succeeds" if one["cost_of_1000"] is None else f"{one['cost_of_1000']:.2f}",
                spread(rate) if rate else "",
            )
        )
    columns = ("", "tokens a second", "KLD, nats", "well formed", "verified", "cost of 1,000", "successes a second")
    return table(columns, rows)


if __name__ == "__main__":
    main()
