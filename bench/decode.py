"""Reading prompts and greedy decoding, SmolLM2-135M in float32 and in few bits: `python -m bench.decode --peers`.

Four tasks: one text, eight at once, 32 at once, a prompt of 512 tokens. Prints a table of each; with --peers it
also writes results/decode.json. What compares is the ratio of two turns of one round: tokens a second depend on the
machine and its mood. Decoding one text reads every weight once a token, so the memory bandwidth bounds it; the
share of that bound says how much is left to win. --random-1b gives a Llama of a billion random weights the same to
do, ours alone: its layers are as wide as those of models in use. It writes results/decode-1b.json.
"""

import statistics
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import click
import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from minillm.archs import find_hf
from minillm.blocks.params import stacked
from minillm.checkpoint.loader import open_checkpoint
from minillm.checkpoint.pull import pulled
from minillm.config import Fields
from minillm.errors import UserError
from minillm.model import Model
from minillm.xla import memory_bandwidth

from .peers import (
    MODEL,
    PEER_PACKAGES,
    open_llama_cpp,
    open_minillm,
    open_transformers,
    require_compiler,
    require_peers,
)
from .report import ratio, rounded, span, spread, where_and_what, write
from .timing import Contestant, Round, rotated, wait_for_quiet

OURS = {"minillm": None, "minillm w8a8": "w8a8"}
TRANSFORMERS = {
    "transformers": partial(open_transformers, "float32"),
    "transformers bf16": partial(open_transformers, "bfloat16"),
}
LLAMA_CPP = {f"llama.cpp {kind}": partial(open_llama_cpp, kind) for kind in ("F32", "Q8_0", "Q4_1")}
COMPILED = "transformers compiled"  # for one text alone: each shape takes minutes of compiling
PAIRS = [("minillm", other) for other in ("transformers", COMPILED, "llama.cpp F32")]
PAIRS += [("minillm w8a8", other) for other in ("minillm", "transformers bf16", "llama.cpp Q8_0", "llama.cpp Q4_1")]
BILLION = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}


def compiled(rows: int) -> dict[str, Any]:
    """transformers compiled, for texts of so many tokens."""
    return {COMPILED: partial(open_transformers, "float32", rows)}


@dataclass(frozen=True)
class Task:
    """So many prompts of so many tokens, with so many to follow (0: reading is what is timed); who can do it."""

    prompts: int
    length: int
    n: int
    peers: dict[str, Any]

    @property
    def tokens(self) -> int:
        """What a turn is timed for."""
        return self.prompts * (self.n or self.length)


TASKS = {
    "one text": Task(1, 32, 64, TRANSFORMERS | compiled(32 + 64 + 1) | LLAMA_CPP),
    "eight at once": Task(8, 32, 64, TRANSFORMERS),
    "32 at once": Task(32, 32, 16, TRANSFORMERS),
    "a prompt of 512": Task(1, 512, 0, TRANSFORMERS | compiled(512 + 1) | LLAMA_CPP),
}

# Each round continues the next tokens of it.
TEXT = """The mill stands where two rivers meet, and nobody remembers who built it. In spring the water is high and
the wheel turns day and night; in August it hardly moves, and the miller sits by the door and mends sacks. He keeps
a book in which he writes down what the farmers bring: wheat from the hill, rye from the far side of the wood,
barley when the summer was wet. At the end of the year he adds up the columns, draws a line under them, and goes
out to look at the stars. His daughter asked him once what the line was for. So that I know where one year stops,
he said, for the river does not tell me. She thought about it for a long time. The next winter she began a book
of her own, and wrote down not the grain but the days on which the kingfisher came."""


@click.command(help=__doc__)
@click.option("--peers", is_flag=True, help="Compare with transformers and llama.cpp.")
@click.option("--random-1b", is_flag=True, help="A larger model of random weights, ours alone.")
@click.option("--rounds", default=12, show_default=True, type=click.IntRange(1), help="Turns of each.")
def main(peers: bool, random_1b: bool, rounds: int) -> None:
    try:
        if peers and random_1b:
            raise UserError("--peers have no model of random weights; leave one of the two options out")
        if peers:
            require_peers()
            require_compiler()
        report = measure(peers, BILLION if random_1b else None, rounds)
    except UserError as error:
        sys.exit(f"bench.decode: {error}")
    show(report)
    if peers or random_1b:  # a run alone must not replace a comparison
        write("decode-1b" if random_1b else "decode", report)


def measure(peers: bool, shape: dict[str, Any] | None, rounds: int) -> dict:
    """Play the rounds of every task and report on them."""
    tokenizer, weight_bytes = open_checkpoint(pulled(MODEL)).tokenizer(), 4 * parameters(shape)
    assert tokenizer is not None  # this model has one
    text, bandwidths, others, tasks = tokenizer.encode(TEXT), [], [], {}
    for name, task in TASKS.items():
        players = {who: partial(open_minillm, recipe, shape) for who, recipe in OURS.items()}
        done, resident = play(players | (task.peers if peers else {}), task, text, rounds)
        bandwidths += [one.bandwidth for one in done]
        others += [turn.others for one in done for turn in one.turns.values()]
        pairs = [pair for pair in PAIRS if set(pair) <= done[0].turns.keys()]
        tasks[name] = {
            "times_as_fast": {f"{one} over {other}": speed_ratio(done, one, other) for one, other in pairs},
            "speeds": {who: speed(done, who, task.tokens) for who in done[0].turns},
            "same_tokens_as_minillm": {who: agreement(done, who) for who in done[0].turns if who != "minillm"},
            "resident_gb": resident,
        }
        if name == "one text":
            tasks[name]["speeds"]["minillm"] |= bandwidth_share(done, "minillm", task.n, weight_bytes)
    return {
        "tasks": tasks,
        "memory_bandwidth_gb_s": round(statistics.median(bandwidths) / 1e9, 1),
        "weights_gb": round(weight_bytes / 1e9, 3),
        "others_at_most": rounded(max(others)),
        "setting": {"model": shape or MODEL, "rounds": rounds},
        **where_and_what(*(PEER_PACKAGES if peers else ())),
    }


def play(players: dict[str, Any], task: Task, text: list[int], rounds: int) -> tuple[list[Round], dict]:
    """The rounds of a task, and the memory that each process was left with, in GB."""
    done, warm_up = [], (prompts_of(task, text, 0), task.n and 8)
    with ExitStack() as stack:
        started = {name: Contestant(opened, warm_up) for name, opened in players.items()}
        contestants = {name: stack.enter_context(one) for name, one in started.items()}
        for number in range(rounds):
            prompts = prompts_of(task, text, number)
            wait_for_quiet()
            bandwidth = memory_bandwidth()
            turns = {name: contestants[name].decode(prompts, task.n) for name in rotated([*contestants], number)}
            done.append(Round(turns, bandwidth))
        return done, {name: one.resident_gb() for name, one in contestants.items()}


def prompts_of(task: Task, text: list[int], number: int) -> list[list[int]]:
    """The prompts of a round: pieces of a text that goes round and round."""
    begins = [(number * task.prompts + i) * task.length for i in range(task.prompts)]
    return [[text[(begin + i) % len(text)] for i in range(task.length)] for begin in begins]


def parameters(shape: dict[str, Any] | None) -> int:
    """How many numbers a model has: SmolLM2, unless the entries of a config.json are given."""
    if shape is None:
        shapes = open_checkpoint(pulled(MODEL)).shapes()
    else:
        config = find_hf(shape["model_type"], "model_type").config_from_hf(Fields(shape, "shape"))
        shapes = Model.build(config, lambda name, layer, *shapes, init: stacked(shapes))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def speed_ratio(rounds: list[Round], one: str, other: str) -> dict:
    """How many times as fast one is as another."""
    return ratio([each.turns[other].seconds / each.turns[one].seconds for each in rounds])


def speed(rounds: list[Round], name: str, n: int) -> dict:
    """Tokens a second, and between which rates half of the rounds lay."""
    low, middle, high = np.percentile([n / one.turns[name].seconds for one in rounds], (25, 50, 75))
    return {"tokens_per_second": rounded(middle), "quartiles": [rounded(low), rounded(high)]}


def bandwidth_share(rounds: list[Round], name: str, n: int, weight_bytes: int) -> dict:
    """The share of the memory bandwidth that reading the weights once a token takes."""
    shares = [n / one.turns[name].seconds * weight_bytes / one.bandwidth for one in rounds]
    return {"bandwidth_share": rounded(np.median(shares))}


def agreement(rounds: list[Round], peer: str) -> dict:
    """How many of the tokens before the first difference: in all rounds together, and in the worst."""
    same = []
    for one in rounds:
        pairs = list(zip(one.turns["minillm"].tokens, one.turns[peer].tokens, strict=True))
        same.append(next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs)))
    total = sum(len(one.turns["minillm"].tokens) for one in rounds)
    return {"before_first_difference": sum(same), "of": total, "worst_round": min(same)}


def show(report: dict) -> None:
    """Print the report's main numbers."""
    for task, found in report["tasks"].items():
        table = Table(task, "tokens/s", "quartiles", "of bandwidth", "resident GB", "tokens as minillm")
        for name, one in found["speeds"].items():
            row = [name, f"{one['tokens_per_second']:.1f}", span(one["quartiles"], 1)]
            row.append(f"{one['bandwidth_share']:.0%}" if "bandwidth_share" in one else "")
            row.append(f"{found['resident_gb'][name]:.2f}")
            same = found["same_tokens_as_minillm"].get(name)
            row.append(f"{same['before_first_difference']} of {same['of']}" if same else "")
            table.add_row(*row)
        Console(width=110).print(table)
        for pair, times in found["times_as_fast"].items():
            print(f"{pair}: {spread(times)}")
    print(f"{report['setting']['rounds']} rounds, others took up to {report['others_at_most']:.0%} of the machine;")
    print(f"memory reads at {report['memory_bandwidth_gb_s']} GB/s, float32 weights are {report['weights_gb']} GB")


if __name__ == "__main__":
    main()
