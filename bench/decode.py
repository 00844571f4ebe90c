"""Greedy decoding at batch 1, SmolLM2-135M in float32: `python -m bench.decode --peers`.

Prints a table; with --peers it also writes results/decode.json. What compares is the ratio of two turns of one
round: tokens a second depend on the machine and its mood. Decoding one sequence reads every weight once a token,
so the memory bandwidth bounds it; the share of that bound says how much is left to win.
"""

import json
import os
import platform
import statistics
import sys
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

import click
import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from minillm.checkpoint.loader import open_checkpoint
from minillm.checkpoint.pull import pulled
from minillm.errors import UserError
from minillm.xla import memory_bandwidth

from .peers import MODEL, PEER_PACKAGES, open_llama_cpp, open_minillm, open_transformers, require_peers
from .timing import Contestant, Round, median_interval, rotated, wait_for_quiet

RESULTS = Path(__file__).parent / "results" / "decode.json"
OURS, PEERS = {"minillm": open_minillm}, {"transformers": open_transformers, "llama.cpp": open_llama_cpp}
PROMPT_TOKENS = 32

# Each round continues the next 32 tokens of it.
TEXT = """The mill stands where two rivers meet, and nobody remembers who built it. In spring the water is high and
the wheel turns day and night; in August it hardly moves, and the miller sits by the door and mends sacks. He keeps
a book in which he writes down what the farmers bring: wheat from the hill, rye from the far side of the wood,
barley when the summer was wet. At the end of the year he adds up the columns, draws a line under them, and goes
out to look at the stars. His daughter asked him once what the line was for. So that I know where one year stops,
he said, for the river does not tell me. She thought about it for a long time. The next winter she began a book
of her own, and wrote down not the grain but the days on which the kingfisher came."""


@click.command(help=__doc__)
@click.option("--peers", is_flag=True, help="Compare with transformers and llama.cpp.")
@click.option("--rounds", default=12, show_default=True, type=click.IntRange(1), help="Turns of each.")
@click.option("--tokens", default=64, show_default=True, type=click.IntRange(1, 128), help="Tokens a turn.")
def main(peers: bool, rounds: int, tokens: int) -> None:
    try:
        report = measure(peers, rounds, tokens)
    except UserError as error:
        sys.exit(f"bench.decode: {error}")
    show(report)
    if peers:  # a run alone must not replace a comparison
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(report, indent=2) + "\n")


def measure(peers: bool, rounds: int, n: int) -> dict:
    """Play the rounds and report on them."""
    if peers:
        require_peers()
    checkpoint = open_checkpoint(pulled(MODEL))
    weight_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(checkpoint.shapes()))
    tokenizer = checkpoint.tokenizer()
    assert tokenizer is not None  # this model has one
    text = tokenizer.encode(TEXT)
    with ExitStack() as stack:
        started = {name: Contestant(opened) for name, opened in (OURS | PEERS if peers else OURS).items()}
        contestants = {name: stack.enter_context(one) for name, one in started.items()}

        done = []
        for number in range(rounds):
            first = number * PROMPT_TOKENS % (len(text) - PROMPT_TOKENS)
            prompt = text[first : first + PROMPT_TOKENS]
            wait_for_quiet()
            bandwidth = memory_bandwidth()
            turns = {name: contestants[name].decode(prompt, n) for name in rotated([*contestants], number)}
            done.append(Round(turns, bandwidth))
    return {
        "speed_of_minillm_over": {name: ratio(done, name) for name in contestants if name != "minillm"},
        "decoders": {
            name: speed(done, name, n) | bandwidth_share(done, name, n, weight_bytes) for name in contestants
        },
        "same_tokens_as_minillm": {name: agreement(done, name) for name in contestants if name != "minillm"},
        "memory_bandwidth_gb_s": round(statistics.median(one.bandwidth for one in done) / 1e9, 1),
        "weights_gb": round(weight_bytes / 1e9, 3),
        "others_at_most": rounded(max(turn.others for one in done for turn in one.turns.values())),
        "setting": {
            "model": MODEL,
            "dtype": "float32",
            "prompt_tokens": PROMPT_TOKENS,
            "tokens": n,
            "rounds": rounds,
        },
        "machine": {"cpu": cpu_model(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": versions(peers),
    }


def ratio(rounds: list[Round], peer: str) -> dict:
    """How many times as fast as a peer we are: the median over rounds and its 95 % interval."""
    ratios = np.array([one.turns[peer].seconds / one.turns["minillm"].seconds for one in rounds])
    return {"median": rounded(np.median(ratios)), "interval_95": [rounded(end) for end in median_interval(ratios)]}


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


def versions(peers: bool) -> dict[str, str]:
    """What was measured, and with what."""
    packages = ("minillm", "jax", "jaxlib", "flax", "numpy", *(PEER_PACKAGES if peers else ()))
    return {"python": platform.python_version()} | {package: version(package) for package in packages}


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


def show(report: dict) -> None:
    """Print the report's main numbers."""
    table = Table("", "tokens/s", "quartiles", "of bandwidth", "minillm is", "95 %", "same tokens")
    for name, found in report["decoders"].items():
        row = [name, f"{found['tokens_per_second']:.1f}", span(found["quartiles"], 1)]
        row.append(f"{found['bandwidth_share']:.0%}")
        if name in report["speed_of_minillm_over"]:
            ours, same = report["speed_of_minillm_over"][name], report["same_tokens_as_minillm"][name]
            row += [f"{ours['median']:.2f}x", span(ours["interval_95"], 2)]
            row.append(f"{same['before_first_difference']} of {same['of']}")
        table.add_row(*row)
    Console(width=100).print(table)
    print(f"{report['setting']['rounds']} rounds, others took up to {report['others_at_most']:.0%} of the machine;")
    print(f"memory reads at {report['memory_bandwidth_gb_s']} GB/s, and the weights are {report['weights_gb']} GB")


def span(ends: list[float], digits: int) -> str:
    return " – ".join(f"{end:.{digits}f}" for end in ends)


def rounded(value) -> float:
    return round(float(value), 3)


if __name__ == "__main__":
    main()
