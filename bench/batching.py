"""Many requests at once beside one, and beside transformers: `python -m bench.batching --peers`.

SmolLM2-135M in float32, greedy. Alike: 16 requests with prompts of 32 tokens and 128 new ones; ragged: prompts of 8
to 96 tokens, 16 to 240 new ones. The engine ends each request where it should end; transformers' `generate` pads
the prompts and goes on until the longest has its tokens, of which those that were asked for count. `exact` is the
mode in which tokens do not depend on the batch. Writes results/batching.json.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import click
import numpy as np
from rich.console import Console
from rich.table import Table

import minillm
from minillm.engine import Engine

from .decode import TEXT
from .peers import MODEL, PEER_PACKAGES, THREADS, require_peers, transformers_model
from .report import ratio, spread, where_and_what, write
from .timing import Contestant, Round, Turn, rotated

REQUESTS = 16


class Work(NamedTuple):
    """Token ids of prompts, and how many are to follow each."""

    prompts: list[list[int]]
    lengths: list[int]


class Done(NamedTuple):
    """Token ids that followed, and how many of them came in how many seconds after all prompts were read."""

    texts: list[list[int]]
    decoded: int
    decoding: float


Serve = Callable[[list[list[int]], list[int]], tuple[Done, float]]


def open_alone(exact: bool) -> Serve:
    """One request after the other by `LM.generate`."""
    lm = minillm.load(MODEL)

    def serve(prompts: list[list[int]], lengths: list[int]) -> tuple[Done, float]:
        done, began = Done([], 0, 0.0), time.perf_counter()
        for prompt, n in zip(prompts, lengths, strict=True):
            one = lm.generate(prompt, max_tokens=n, temperature=0.0, exact=exact)
            speed = one.timings["decode_tok_s"]
            assert speed is not None
            done = Done([*done.texts, one.tokens], done.decoded + n - 1, done.decoding + (n - 1) / speed)
        return done, time.perf_counter() - began

    return serve


def open_engine(kind: str, exact: bool) -> Serve:
    """All at once by the engine."""
    lm = minillm.load(MODEL)

    def serve(prompts: list[list[int]], lengths: list[int]) -> tuple[Done, float]:
        engine = Engine(lm, max_batch=REQUESTS, context=384, kind=kind, share=False, exact=exact)
        began = time.perf_counter()
        requests = [
            engine.submit(prompt, max_tokens=n, temperature=0.0) for prompt, n in zip(prompts, lengths, strict=True)
        ]
        while engine.waiting or not all(request.decodes or request.done for request in engine.order):
            engine.step()
        all_read, before = time.perf_counter(), sum(len(request.tokens) for request in requests)
        engine.run()
        ended, texts = time.perf_counter(), [request.tokens for request in requests]
        return Done(texts, sum(map(len, texts)) - before, ended - all_read), ended - began

    return serve


def open_transformers() -> Serve:
    """All at once by transformers' `generate`, padded on the left."""
    torch, model = import_module("torch"), transformers_model()
    torch.set_num_threads(THREADS)

    def serve(prompts: list[list[int]], lengths: list[int]) -> tuple[Done, float]:
        longest, began = max(map(len, prompts)), time.perf_counter()
        tokens = torch.tensor([[0] * (longest - len(one)) + one for one in prompts])
        mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in prompts])
        n = max(lengths)
        out = model.generate(
            tokens, attention_mask=mask, max_new_tokens=n, min_new_tokens=n, do_sample=False, pad_token_id=0
        )
        texts = [row[:n] for row, n in zip(out[:, longest:].tolist(), lengths, strict=True)]
        return Done(texts, 0, 0.0), time.perf_counter() - began

    return serve


OURS: dict[str, Any] = {
    "alone": partial(open_alone, exact=False),
    "alone, exact": partial(open_alone, exact=True),
    "paged": partial(open_engine, kind="paged", exact=False),
    "contiguous": partial(open_engine, kind="contiguous", exact=False),
    "paged, exact": partial(open_engine, kind="paged", exact=True),
}


@click.command(help=__doc__)
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Turns of each.")
@click.option("--peers", is_flag=True, help="With transformers (needs the oracle extra).")
def main(rounds: int, peers: bool) -> None:
    if peers:
        require_peers()
    opened = OURS | ({"transformers": open_transformers} if peers else {})
    alike, ragged = works()
    one = Work(alike.prompts[:1], alike.lengths[:1])
    work = {name: one if name.startswith("alone") else alike for name in OURS}
    with ExitStack() as stack:
        players = {
            name: stack.enter_context(Contestant(how, one if name.startswith("alone") else ragged))
            for name, how in opened.items()
        }
        even = [play(players, work, i) for i in range(rounds)]
        both: dict[str, Work] = dict.fromkeys(["paged", "transformers"], ragged)
        uneven = [play(players, both, i) for i in range(rounds if peers else 0)]
    report = {
        "decoding": {
            f"{one} over {other}": speed_ratio(even, one, other, decode_speed)
            for one, other in (
                ("paged", "alone"),
                ("contiguous", "alone"),
                ("paged", "contiguous"),
                ("alone, exact", "alone"),
                ("paged, exact", "paged"),
            )
        },
        "end to end": {
            "paged over alone": speed_ratio(even, "paged", "alone", whole_speed),
            "paged, exact over paged": speed_ratio(even, "paged, exact", "paged", whole_speed),
        },
        "ragged, end to end": {"paged over transformers": speed_ratio(uneven, "paged", "transformers", whole_speed)}
        if peers
        else {},
        "same tokens as transformers": agreeing(uneven[-1]) if peers else None,
        "setting": {"rounds": rounds, "requests": REQUESTS, "model": MODEL, "dtype": "float32"},
        **where_and_what(*(PEER_PACKAGES if peers else ())),
    }
    show(report)
    if peers:  # a run alone must not replace a comparison
        write("batching", report)


def works() -> tuple[Work, Work]:
    """The requests that are alike and the ragged ones, all from one text."""
    lm, rng = minillm.load(MODEL), np.random.default_rng(0)
    assert lm.tokenizer is not None
    ids = lm.tokenizer.encode(TEXT)
    begins = rng.integers(0, len(ids) - 96, REQUESTS).tolist()
    alike = Work([ids[begin : begin + 32] for begin in begins], [128] * REQUESTS)
    widths, lengths = rng.integers(8, 97, REQUESTS).tolist(), rng.integers(16, 241, REQUESTS).tolist()
    return alike, Work([ids[begin : begin + n] for begin, n in zip(begins, widths, strict=True)], lengths)


def play(players: dict[str, Contestant], works: dict[str, Work], i: int) -> Round:
    """One turn of each."""
    return Round({name: players[name].decode(*works[name]) for name in rotated([*works], i)}, 0.0)


def decode_speed(turn: Turn) -> float:
    """Tokens a second once all prompts are read."""
    return turn.tokens.decoded / turn.tokens.decoding


def whole_speed(turn: Turn) -> float:
    """Tokens a second from the first prompt to the last token."""
    return sum(map(len, turn.tokens.texts)) / turn.seconds


def speed_ratio(rounds: list[Round], one: str, other: str, speed: Callable[[Turn], float]) -> dict[str, Any]:
    """How many times as fast one is as another."""
    return ratio([speed(each.turns[one]) / speed(each.turns[other]) for each in rounds])


def agreeing(last: Round) -> str:
    """How many texts of the engine are transformers' to the last token."""
    pairs = list(zip(last.turns["paged"].tokens.texts, last.turns["transformers"].tokens.texts, strict=True))
    return f"{sum(one == other for one, other in pairs)} of {len(pairs)}"


def show(report: dict[str, Any]) -> None:
    """Print the report's main numbers."""
    table = Table("", "", "times as fast (95 %)")
    for what in ("decoding", "end to end", "ragged, end to end"):
        for name, found in report[what].items():
            table.add_row(what, name, spread(found))
            what = ""
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
