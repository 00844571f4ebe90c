"""What no other experiment has measured: contestants for the techniques, by turns, and divergence."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

import minillm
from minillm.cache import rows
from minillm.checkpoint.loader import open_checkpoint
from minillm.checkpoint.pull import pulled
from minillm.engine import Engine
from minillm.evaluate import quality
from minillm.lm import LM
from minillm.model import Model
from minillm.texts import evaluation
from minillm.tokenizer import Tokenizer

from ..decode import TASKS, TEXT, play
from ..peers import MODEL, alone, open_minillm, together
from ..pruning import both
from ..report import RESULTS, ratio, read, rounded
from ..speculation import SENTENCES, STORY
from ..success import INT4, PRUNED, as_lm
from ..timing import Contestant, Decode, Round, rotated

ONE, SEVERAL = "one text", "eight at once"  # tasks of bench.decode
TASK_OF = {name: replace(TASKS[name], n=16) for name in (ONE, SEVERAL)}  # int4 is slow
LOOKUP = "prompt-lookup"
DRAFTING = 8  # texts with drafts
LONG, AFTER = 2048, 32  # tokens of a prompt that is read in blocks or at once, and after it
NEVER = 1 << 30  # rows of memory that are not cut into blocks
WINDOW = 512  # tokens that a model sees at once for its divergence


def few_bits_and_channels(rounds: int) -> tuple[list[Round], list[Round]]:
    """Int4 beside float32 with one text, and both beside half of the channels with several."""
    ids = tokenizer().encode(TEXT)
    players = {"minillm": partial(open_minillm, None), INT4: partial(open_minillm, INT4)}
    one, _ = play(players, TASK_OF[ONE], ids, rounds)
    several, _ = play(players | {PRUNED: open_pruned}, TASK_OF[SEVERAL], ids, rounds)
    return one, several


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
    copies = [f"Original:\n{STORY}\n\nAn exact copy:\n{'. '.join(SENTENCES[i : i + 2])}." for i in range(DRAFTING)]
    prompts = [*map(tokenizer().encode, copies)]
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


def open_reader(at_once: int) -> Callable[[list[int], int], tuple[dict[str, Any], float]]:
    """A text after a long prompt, in which memories of so many rows are not cut up."""
    rows.AT_ONCE = at_once  # in a process of its own
    lm = endless(minillm.load(MODEL))

    def decode(prompt: list[int], n: int) -> tuple[dict[str, Any], float]:
        out = lm.generate(prompt, max_tokens=n + 1, temperature=0.0)
        speeds = [out.timings[name] for name in ("prefill_tok_s", "decode_tok_s")]
        first, after = (1 / speed for speed in speeds if speed)
        return {"text": out.tokens, "first": first, "after": after}, after * n

    return decode


def duel(players: dict[Any, Any], prompt: Any, n: int, rounds: int) -> list[dict[Any, Any]]:
    """Two contestants with one prompt, by turns."""
    with ExitStack() as stack:
        started = {name: Contestant(opened, (prompt, n)) for name, opened in players.items()}
        ready = {name: stack.enter_context(one) for name, one in started.items()}
        return [{name: ready[name].decode(prompt, n) for name in rotated([*ready], i)} for i in range(rounds)]


def divergence(plain: LM, name: str, model: Model, documents: int) -> list[float]:
    """KL(float32 || model) in nats a token with its interval; as `bench.quality` has it, if it has."""
    path = f"quality-{MODEL}"
    recipes = read(path)["recipes"] if (RESULTS / f"{path}.json").exists() else {}
    if name in recipes:
        return recipes[name]["kld_mean"]
    found = quality(model, tokenizer(), evaluation()[:documents], WINDOW, plain.model)
    return [rounded(one) for one in found["kld_mean"]]


def endless(lm: LM) -> LM:
    """A model that nothing but a limit ends."""
    return LM(replace(lm.config, eos=()), None, lm.shapes, lm.weights)


def tokenizer() -> Tokenizer:
    """That of the model."""
    found = open_checkpoint(pulled(MODEL)).tokenizer()
    assert found is not None
    return found
