"""A function a technique: its row of the table, and why what came of it is not what is claimed."""

from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

import minillm
from minillm.generate import CHUNK, Plan
from minillm.lm import LM
from minillm.model import Model

from ..batching import REQUESTS
from ..decode import speed_ratio
from ..report import rounded, spread
from ..success import CONTINUOUS, DISTILLED, DRAFTED, INT4, INT8, PLAIN, PRUNED, STATIC, STUDENT, without_half
from ..success import MODEL as TEACHER
from ..timing import Round
from .claims import CLAIMED
from .contests import (
    AFTER,
    DRAFTING,
    LONG,
    LOOKUP,
    ONE,
    SEVERAL,
    TASK_OF,
    divergence,
    drafted,
    few_bits_and_channels,
    in_blocks,
)
from .roof import Roof

KINDEST, WORST = "copy", "essay"  # tasks of bench.speculation
NEEDED = ("roofline", "decode", "batching", "speculation", "pruning", "success")


class Row(NamedTuple):
    """A technique: what is claimed and where; for one text and for several what the roof allows and what was found.

    kld is nats a token with an interval, or words; way is that of `bench.success`.
    """

    claimed: str
    roof_one: float | None
    one: dict[str, Any] | None
    roof_several: float | None
    several: dict[str, Any] | None
    kld: Any
    way: str | None
    why: str


class Run(NamedTuple):
    """What rows are made from: results of other experiments by name (NEEDED), the model, the roof over it.

    rounds and documents say how much is measured.
    """

    known: dict[str, Any]
    plain: LM
    roof: Roof
    rounds: int
    documents: int

    def divergence(self, name: str, model: Model) -> list[float]:
        return divergence(self.plain, name, model, self.documents)


def techniques(run: Run) -> dict[str, Row]:
    """Every technique by its name."""
    one_text, eight = few_bits_and_channels(run.rounds)
    return {
        "INT8": int8(run),
        "INT4": int4(run, one_text, eight),
        "speculative decoding": speculation(run),
        "continuous batching": batching(run),
        "structured pruning, 50 %": pruning(run, eight),
        "FlashAttention": flash_attention(run),
        "distillation": distillation(run),
    }


def int8(run: Run) -> Row:
    """Int8 times int8, by `bench.decode`."""
    pair, tasks = f"minillm {INT8} over minillm", run.known["decode"]["tasks"]
    model = run.plain.quantize(INT8)[0].model
    predicted = partial(run.roof.step, kind="int8", size=bytes_of(model))
    before, after = (1e3 / tasks[ONE]["speeds"][who]["tokens_per_second"] for who in ("minillm", f"minillm {INT8}"))
    least = [1e3 * seconds for seconds in (run.roof.step(1), predicted(1))]
    return Row(
        CLAIMED["INT8"],
        run.roof.step(1) / predicted(1),
        tasks[ONE]["times_as_fast"][pair],
        run.roof.step(8) / predicted(8),
        tasks[SEVERAL]["times_as_fast"][pair],
        run.divergence(INT8, model),
        INT8,
        f"reading weights is {least[0]:.0f} ms of a step's {before:.0f} and {least[1]:.0f} of {after:.0f}: what is "
        f"left, {before - least[0]:.0f} and {after - least[1]:.0f} ms, is small operations on narrow layers, and a "
        "product of int8 that reads memory at a fraction of its speed (see the roofline)",
    )


def int4(run: Run, one_text: list[Round], eight: list[Round]) -> Row:
    """Int4 with a scale for 32 numbers, decoded for products in float32."""
    model = run.plain.quantize(INT4)[0].model
    predicted = partial(run.roof.step, size=bytes_of(model))
    ours, theirs = (1e3 * seconds_of(one_text, who) / TASK_OF[ONE].n for who in (INT4, "minillm"))
    return Row(
        CLAIMED["INT4"],
        run.roof.step(1) / predicted(1),
        speed_ratio(one_text, INT4, "minillm"),
        run.roof.step(8) / predicted(8),
        speed_ratio(eight, INT4, "minillm"),
        run.divergence(INT4, model),
        INT4,
        f"a step takes {ours:.0f} ms to {theirs:.0f}, though its bytes take {1e3 * predicted(1):.0f}: XLA has no "
        "product of int4 here, so each step decodes all weights to floats first",
    )


def speculation(run: Run) -> Row:
    """Looking up drafts in the text, by `bench.speculation`; several texts by the engine."""
    found = {task: run.known["speculation"]["tasks"][task][LOOKUP] for task in (KINDEST, WORST)}
    costs = [one["verify_ms"] / one["plain_ms"] for one in found.values()]
    gains = [one["tokens_per_pass"] for one in found.values()]
    worst = spread(found[WORST]["over plain"])
    return Row(
        CLAIMED["speculative decoding"],
        run.roof.drafted(found[KINDEST]),
        found[KINDEST]["over plain"],
        run.roof.drafted(found[KINDEST], DRAFTING),
        drafted(run.rounds),
        f"same text ({found[KINDEST]['same_from_the_start']} of {found[KINDEST]['tokens']} tokens)",
        DRAFTED,
        f"copying a text, a pass gives {gains[0]:.0f} tokens for the price of {costs[0]:.1f} steps; an essay "
        f"({worst}) gives {gains[1]:.0f} for {costs[1]:.1f}; with {DRAFTING} texts a pass is "
        "bound by arithmetic, and guesses are no longer free",
    )


def batching(run: Run) -> Row:
    """Many requests at once, by `bench.batching`; one text then takes that much longer."""
    found = run.known["batching"]
    several = found["decoding"]["paged over alone"]
    one = {"median": rounded(several["median"] / REQUESTS)}
    one |= {"interval_95": [rounded(end / REQUESTS) for end in several["interval_95"]]}
    in_turn = run.known["success"]["tokens_a_second"][f"{CONTINUOUS} over {STATIC}"]
    alone, all_of_them = run.roof.step(1), run.roof.step(REQUESTS)
    return Row(
        CLAIMED["continuous batching"],
        alone / all_of_them,
        one,
        REQUESTS * alone / all_of_them,
        several,
        f"same texts ({found['same tokens as transformers']})",
        CONTINUOUS,
        f"a step for {REQUESTS} costs {REQUESTS / several['median']:.1f} steps for one, where the roof allows "
        f"{all_of_them / alone:.1f}: beyond a few texts it is arithmetic; over batches that wait for "
        f"their last text it is {spread(in_turn)}",
    )


def pruning(run: Run, eight: list[Round]) -> Row:
    """Without half of the feed-forward channels, by `bench.pruning`; not taught again."""
    before, after = run.known["pruning"]["parameters"]
    share = after / before
    return Row(
        CLAIMED["structured pruning, 50 %"],
        run.roof.step(1) / run.roof.step(1, share=share),
        run.known["pruning"]["pruned_over_full"]["whole step"]["times as fast"],
        run.roof.step(8) / run.roof.step(8, share=share),
        speed_ratio(eight, PRUNED, "minillm"),
        run.divergence(PRUNED, without_half(run.plain).model),
        PRUNED,
        f"half of the channels are {1 - share:.0%} of the parameters: attention, embedding and head stay, and so "
        "do all small operations; nothing was taught again",
    )


def flash_attention(run: Run) -> Row:
    """Memory in blocks of rows beside all of it at once: a long prompt, and decoding after it."""
    first, after, same = in_blocks(run.rounds)
    config = run.plain.config
    capacity = Plan.of(range(LONG), AFTER, config.context).capacity
    rest = run.roof.step(1, LONG)
    at_once, in_parts = run.roof.attention(config, LONG, capacity, 4), run.roof.attention(config, LONG, LONG / 2, 0)
    scores = 4e-6 * config.layers[0][0].h * CHUNK * capacity
    return Row(
        CLAIMED["FlashAttention"],
        (rest + at_once) / (rest + in_parts),
        first,
        run.roof.step(1, rows=capacity) / run.roof.step(1, rows=LONG),
        after,
        f"same text ({same})",
        None,
        f"latency: a prompt of {LONG:,} tokens; throughput: decoding after it. Scores of a chunk at once are "
        f"{scores:.0f} MB, which no cache holds, and blocks skip rows not written yet; "
        f"but {rest / (rest + at_once):.0%} of the time is due to products with weights",
    )


def distillation(run: Run) -> Row:
    """tiny-draft beside tiny-transformer, which it learned from."""
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(minillm.load(name).shapes)) for name in (TEACHER, STUDENT)]
    found = run.known["success"]
    return Row(
        CLAIMED["distillation"],
        sizes[0] / sizes[1],
        found["tokens_a_second"][f"{DISTILLED} over {PLAIN}"],
        None,
        None,
        found["ways"][DISTILLED]["kld"],
        DISTILLED,
        f"{STUDENT} has {sizes[0] / sizes[1]:.0f} times fewer parameters than {TEACHER}; both fit into a cache, "
        "where a step's call and its small operations count as much as memory",
    )


def bytes_of(model: Model) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(model))


def seconds_of(played: list[Round], who: str) -> float:
    """Of a turn, the median."""
    return float(np.median([one.turns[who].seconds for one in played]))
