"""What the techniques everybody quotes are worth here: `python -m bench.techniques`.

Claims come from papers about large models on GPUs; what is measured is SmolLM2-135M on this machine, in float32 but
for the technique: one text, several, and KL(float32 || with the technique) a token. Between claim and measurement
stands what the roof allows (`bench.roofline`), and the last column says in figures of the same run why they differ.
Whether a text is still any good, and what a good one costs, is asked of tiny-transformer (`bench.success`);
distillation altogether, since SmolLM2 has no student. What other experiments have measured is taken from their
results, the rest is measured now. Writes results/techniques.json.
"""

import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import click
import jax
import numpy as np

import minillm
from minillm.cache import StateSpec, rows
from minillm.checkpoint.loader import open_checkpoint
from minillm.checkpoint.pull import pulled
from minillm.engine import Engine
from minillm.errors import UserError
from minillm.evaluate import quality
from minillm.generate import CHUNK, Plan
from minillm.lm import LM
from minillm.model import Model
from minillm.texts import evaluation

from .batching import REQUESTS
from .decode import TASKS, TEXT, play, speed_ratio
from .peers import MODEL, alone, open_minillm, together
from .pruning import both
from .report import RESULTS, ratio, read, rounded, show_table, spread, table, where_and_what, write
from .roofline import Work, least_seconds
from .speculation import SENTENCES, STORY
from .success import CONTINUOUS, DISTILLED, DRAFTED, INT4, INT8, PLAIN, PRUNED, STATIC, STUDENT, as_lm, without_half
from .success import MODEL as TEACHER
from .timing import Contestant, Decode, Round, rotated

ONE, SEVERAL = "one text", "eight at once"  # tasks of bench.decode
TASK_OF = {name: replace(TASKS[name], n=16) for name in (ONE, SEVERAL)}  # int4 is slow
LOOKUP, KINDEST, WORST = "prompt-lookup", "copy", "essay"  # tasks of bench.speculation
LONG, AFTER = 2048, 32  # tokens of a prompt that is read in blocks or at once, and after it
NEVER = 1 << 30  # rows of memory that are not cut into blocks
DRAFTING = 8  # texts with drafts
WINDOW = 512  # tokens that a model sees at once for its divergence
BRIEF = 128  # tokens in memory, about, where a step is predicted
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


@click.command(help=__doc__)
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Turns of each.")
@click.option("--documents", default=12, show_default=True, type=click.IntRange(2), help="Texts for divergence.")
def main(rounds: int, documents: int) -> None:
    try:
        known = {name: read(name) for name in NEEDED}
        found = techniques(Run(known, rounds, documents))
    except UserError as error:
        sys.exit(f"bench.techniques: {error}")
    report = {
        "rows": {name: row._asdict() for name, row in found.items()},
        "setting": {
            "rounds": rounds,
            "documents": documents,
            "model": MODEL,
            "others": known["success"]["setting"],
        },
        **where_and_what(),
    }
    report["table"] = table_of(found, known["success"])
    show_table(report["table"], width=230)
    write("techniques", report)


class Run:
    """Results of other experiments by name, the machine's limits, the model, and how much is to be measured."""

    def __init__(self, known: dict[str, Any], rounds: int, documents: int):
        self.known, self.rounds, self.documents = known, rounds, documents
        roof = known["roofline"]
        self.limits = {name: 1e9 * most for name, most in roof["peak_gflop_s"].items()}
        self.limits["bandwidth"] = 1e9 * roof["bandwidth_gb_s"]
        self.plain = minillm.load(MODEL)
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(self.plain.model))
        self.memory = self.plain.model.state_bytes(StateSpec(slots=1, max_len=BRIEF))

    def step(
        self, b: int, t: int = 1, share: float = 1.0, kind: str = "float32", size: float | None = None
    ) -> float:
        """The least seconds in which b texts take in t tokens each, with a share of the parameters.

        size is the bytes of the weights, if they are not in float32.
        """
        parameters = share * self.parameters
        weights = 4 * parameters if size is None else size
        return least_seconds(Work(2 * parameters * b * t, weights + b * self.memory, kind), self.limits)

    def divergence(self, name: str, model: Model) -> list[float]:
        """KL(float32 || model) in nats a token with its interval; as `bench.quality` has it, if it has."""
        path = f"quality-{MODEL}"
        recipes = read(path)["recipes"] if (RESULTS / f"{path}.json").exists() else {}
        if name in recipes:
            return recipes[name]["kld_mean"]
        texts, tokenizer = evaluation()[: self.documents], self.plain.tokenizer
        assert tokenizer is not None
        found = quality(model, tokenizer, texts, WINDOW, self.plain.model)
        return [rounded(one) for one in found["kld_mean"]]


def techniques(run: Run) -> dict[str, Row]:
    """Every technique by its name."""
    several = {"minillm": partial(open_minillm, None), INT4: partial(open_minillm, INT4)}
    text = open_checkpoint(pulled(MODEL)).tokenizer()
    assert text is not None
    ids = text.encode(TEXT)
    one_text, _ = play(several, TASK_OF[ONE], ids, run.rounds)
    eight, _ = play(several | {PRUNED: open_pruned}, TASK_OF[SEVERAL], ids, run.rounds)
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
    predicted = partial(run.step, kind="int8", size=bytes_of(model))
    before, after = (1e3 / tasks[ONE]["speeds"][who]["tokens_per_second"] for who in ("minillm", f"minillm {INT8}"))
    least = [1e3 * seconds for seconds in (run.step(1), predicted(1))]
    return Row(
        "up to 1.56x over FP16 (SmoothQuant, arXiv:2211.10438)",
        run.step(1) / predicted(1),
        tasks[ONE]["times_as_fast"][pair],
        run.step(8) / predicted(8),
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
    predicted = partial(run.step, size=bytes_of(model))
    one = speed_ratio(one_text, INT4, "minillm")
    ours, theirs = (1e3 * run_median(one_text, who) / TASK_OF[ONE].n for who in (INT4, "minillm"))
    return Row(
        "3.25x to 4.5x over FP16 (GPTQ, arXiv:2210.17323)",
        run.step(1) / predicted(1),
        one,
        run.step(8) / predicted(8),
        speed_ratio(eight, INT4, "minillm"),
        run.divergence(INT4, model),
        INT4,
        f"a step takes {ours:.0f} ms to {theirs:.0f}, though its bytes take {1e3 * predicted(1):.0f}: XLA has no "
        "product of int4 here, so each step decodes all weights to floats first",
    )


def speculation(run: Run) -> Row:
    """Looking up drafts in the text, by `bench.speculation`; several texts by the engine."""
    found = {task: run.known["speculation"]["tasks"][task][LOOKUP] for task in (KINDEST, WORST)}

    def predicted(one: dict[str, Any], b: int = 1) -> float:
        """As many tokens by plain steps, over the passes that gave them."""
        passes, steps = one["draft_passes"], one["plain_steps"]
        pass_seconds = run.step(b, 1 + len(one["kept_by_place"]))
        tokens = passes * one["tokens_per_pass"] + steps
        return tokens * run.step(b) / (passes * pass_seconds + steps * run.step(b))

    costs = [one["verify_ms"] / one["plain_ms"] for one in found.values()]
    gains = [one["tokens_per_pass"] for one in found.values()]
    worst = spread(found[WORST]["over plain"])
    return Row(
        "2x to 3x (Leviathan et al., arXiv:2211.17192)",
        predicted(found[KINDEST]),
        found[KINDEST]["over plain"],
        predicted(found[KINDEST], DRAFTING),
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
    return Row(
        "2x to 4x of throughput (vLLM, arXiv:2309.06180)",
        run.step(1) / run.step(REQUESTS),
        one,
        REQUESTS * run.step(1) / run.step(REQUESTS),
        several,
        f"same texts ({found['same tokens as transformers']})",
        CONTINUOUS,
        f"a step for {REQUESTS} costs {REQUESTS / several['median']:.1f} steps for one, where the roof allows "
        f"{run.step(REQUESTS) / run.step(1):.1f}: beyond a few texts it is arithmetic; over batches that wait for "
        f"their last text it is {spread(in_turn)}",
    )


def pruning(run: Run, eight: list[Round]) -> Row:
    """Without half of the feed-forward channels, by `bench.pruning`; not taught again."""
    before, after = run.known["pruning"]["parameters"]
    share = after / before
    return Row(
        "1.8x to 2.7x (Minitron, 8B to 4B, arXiv:2408.11796)",
        run.step(1) / run.step(1, share=share),
        run.known["pruning"]["pruned_over_full"]["whole step"]["times as fast"],
        run.step(8) / run.step(8, share=share),
        speed_ratio(eight, PRUNED, "minillm"),
        run.divergence(PRUNED, without_half(run.plain).model),
        PRUNED,
        f"half of the channels are {1 - share:.0%} of the parameters: attention, embedding and head stay, and so "
        "do all small operations; nothing was taught again",
    )


def flash_attention(run: Run) -> Row:
    """Memory in blocks of rows beside all of it at once: a long prompt, and decoding after it."""
    first, after, same = in_blocks(run.rounds)
    spec = run.plain.config.layers[0][0]
    layers = len(run.plain.config.layers)
    capacity = Plan.of(range(LONG), AFTER, run.plain.config.context).capacity

    def attention(rows_seen: float, passes: float) -> float:
        """The least seconds of all queries' attention to so many rows, scores going through memory so often."""
        pairs = layers * LONG * rows_seen * spec.h
        return least_seconds(Work(4 * pairs * spec.k, 4 * passes * pairs, "float32"), run.limits)

    rest = run.step(1, LONG)
    at_once, in_parts = attention(capacity, 4), attention(LONG / 2, 0)
    memory = run.memory / BRIEF * np.array([capacity, LONG])
    weights = 4 * run.parameters
    return Row(
        "up to 3x in training (FlashAttention, arXiv:2205.14135)",
        (rest + at_once) / (rest + in_parts),
        first,
        float((weights + memory[0]) / (weights + memory[1])),
        after,
        f"same text ({same})",
        None,
        f"latency: a prompt of {LONG:,} tokens; throughput: decoding after it. Scores of a chunk at once are "
        f"{4e-6 * spec.h * CHUNK * capacity:.0f} MB, which no cache holds, and blocks skip rows not written yet; "
        f"but {rest / (rest + at_once):.0%} of the time is due to products with weights",
    )


def distillation(run: Run) -> Row:
    """tiny-draft beside tiny-transformer, which it learned from."""
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(minillm.load(name).shapes)) for name in (TEACHER, STUDENT)]
    found = run.known["success"]
    one = found["tokens_a_second"][f"{DISTILLED} over {PLAIN}"]
    return Row(
        "1.6x (DistilBERT, arXiv:1910.01108)",
        sizes[0] / sizes[1],
        one,
        None,
        None,
        found["ways"][DISTILLED]["kld"],
        DISTILLED,
        f"{STUDENT} has {sizes[0] / sizes[1]:.0f} times fewer parameters than {TEACHER}; both fit into a cache, "
        "where a step's call and its small operations count as much as memory",
    )


def bytes_of(model: Model) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(model))


def run_median(played: list[Round], who: str) -> float:
    """Seconds of a turn."""
    return float(np.median([one.turns[who].seconds for one in played]))


def open_pruned() -> Decode:
    """The pruned model by our own generation."""
    lm = minillm.load(MODEL)
    _, model = both()
    lm = endless(as_lm(lm, model, lm.config))

    def decode(prompts: list[list[int]], n: int) -> tuple[list[int], float]:
        return together(lm, prompts, n) if len(prompts) > 1 else alone(lm, prompts[0], n)

    return decode


def drafted(rounds: int) -> dict[str, Any]:
    """Several texts that copy, by the engine: with drafts over without."""
    tokenizer = open_checkpoint(pulled(MODEL)).tokenizer()
    assert tokenizer is not None
    copies = [f"Original:\n{STORY}\n\nAn exact copy:\n{'. '.join(SENTENCES[i : i + 2])}." for i in range(DRAFTING)]
    prompts = [tokenizer.encode(copy) for copy in copies]
    played = duel({None: partial(open_engine, None), LOOKUP: partial(open_engine, LOOKUP)}, prompts, 64, rounds)
    return ratio([turns[None].seconds / turns[LOOKUP].seconds for turns in played])


def open_engine(draft: str | None) -> Decode:
    """Several texts at once, with drafts or without; the seconds from the first token of the last text."""
    lm = endless(minillm.load(MODEL))

    def decode(prompts: list[list[int]], n: int) -> tuple[list[int], float]:
        context = max(map(len, prompts)) + n + 1
        engine = Engine(lm, max_batch=len(prompts), context=context, kind="contiguous", share=False)
        requests = [engine.submit(one, max_tokens=n + 1, temperature=0.0, draft=draft) for one in prompts]
        while engine.waiting or not all(one.decodes for one in engine.order):
            engine.step()
        before, there = sum(len(one.tokens) for one in requests), time.perf_counter()
        engine.run()
        tokens = [token for one in requests for token in one.tokens]
        # a few came while later prompts were read
        return tokens, (time.perf_counter() - there) * n * len(prompts) / (len(tokens) - before)

    return decode


def in_blocks(rounds: int) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Memory in blocks over memory at once: reading a long prompt, decoding after it, how many tokens agree."""
    prompt = np.random.default_rng(0).integers(1000, 40_000, LONG).tolist()
    players = {"blocks": partial(open_reader, rows.AT_ONCE), "at once": partial(open_reader, NEVER)}
    played = duel(players, prompt, AFTER, rounds)
    first, after = (
        ratio([turns["at once"].tokens[what] / turns["blocks"].tokens[what] for turns in played])
        for what in ("first", "after")
    )
    texts = [played[0][who].tokens["text"] for who in players]
    same = sum(one == other for one, other in zip(*texts, strict=True))
    return first, after, f"{same} of {len(texts[0])} tokens"


def open_reader(at_once: int) -> Decode:
    """A text after a long prompt, in which memories of so many rows are not cut up."""
    rows.AT_ONCE = at_once  # in a process of its own
    lm = endless(minillm.load(MODEL))

    def decode(prompt: list[int], n: int) -> tuple[Any, float]:
        out = lm.generate(prompt, max_tokens=n + 1, temperature=0.0)
        speeds = [out.timings[name] for name in ("prefill_tok_s", "decode_tok_s")]
        first, after = (1 / speed for speed in speeds if speed)
        return {"text": out.tokens, "first": first, "after": after}, after * n

    return decode


def endless(lm: LM) -> LM:
    """A model that nothing but a limit ends."""
    return LM(replace(lm.config, eos=()), None, lm.shapes, lm.weights)


def duel(players: dict[Any, Any], prompt: Any, n: int, rounds: int) -> list[dict[Any, Any]]:
    """Two contestants with one prompt, by turns."""
    with ExitStack() as stack:
        started = {name: Contestant(opened, (prompt, n)) for name, opened in players.items()}
        ready = {name: stack.enter_context(one) for name, one in started.items()}
        return [{name: ready[name].decode(prompt, n) for name in rotated([*ready], i)} for i in range(rounds)]


def table_of(found: dict[str, Row], success: dict[str, Any]) -> dict[str, Any]:
    """A line a technique."""
    lines = []
    for name, row in found.items():
        way = success["ways"].get(row.way, {})
        cost = way.get("cost_of_1000")
        lines.append(
            (
                name,
                row.claimed,
                shown(row.roof_one),
                spread(row.one) if row.one else "–",
                shown(row.roof_several),
                spread(row.several) if row.several else "–",
                row.kld if isinstance(row.kld, str) else f"{row.kld[0]:.4f}",
                f"{way['successes']} of {way['of']}" if way else "–",
                "–" if not way else "none" if cost is None else f"{cost:.2f}",
                row.why,
            )
        )
    plain = success["ways"][PLAIN]
    none = ("none of them", "", "", "", "", "", "", f"{plain['successes']} of {plain['of']}")
    lines.append((*none, f"{plain['cost_of_1000']:.2f}", ""))
    columns = ("technique", "usually claimed", "roof, latency", "latency", "roof, throughput", "throughput")
    return table((*columns, "KLD, nats", "verified", "cost of 1,000", "why it differs"), lines)


def shown(times: float | None) -> str:
    """A prediction."""
    return "–" if times is None else f"{times:.1f}x"


if __name__ == "__main__":
    main()
