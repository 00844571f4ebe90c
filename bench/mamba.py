"""Mamba in mamba-130m's shape, random float32 weights, one sequence: `python -m bench.mamba --peers`.

Reads a prompt of 2,048 tokens, and decodes greedily after a short one. Prints a table; with --peers it also writes
results/mamba.json. transformers runs the code that it has for CPUs. mambapy joins in if it is installed: its
parallel scan reads the prompt, though that leaves no state to go on from, and its steps decode.
"""

import multiprocessing
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import click
import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import minillm
from minillm.generate import Plan, generate_tokens
from minillm.sampling import new_sampler
from minillm.xla import memory_bandwidth

from .decode import agreement, bandwidth_share, speed, speed_ratio
from .peers import THREADS, Clock
from .report import rounded, span, spread, where_and_what, write
from .timing import Contestant, Decode, Round, rotated, wait_for_quiet

SIZES = {"vocab_size": 50280, "hidden_size": 768, "num_hidden_layers": 24, "layer_norm_epsilon": 1e-5}
PROMPT, SHORT_PROMPT = 2048, 16
LONG_TRIES = 2  # of a turn that takes some peers a quarter of a minute, quiet or not

# A contestant here gives, as all do, n + 1 tokens and the seconds of the last n; for n = 0 those of the first one,
# which is the prefill.


@click.command(help=__doc__)
@click.option("--peers", is_flag=True, help="Compare with transformers and, if installed, mambapy.")
@click.option("--rounds", default=6, show_default=True, type=click.IntRange(1), help="Turns of each.")
@click.option("--tokens", default=48, show_default=True, type=click.IntRange(1), help="Tokens a turn of decoding.")
def main(peers: bool, rounds: int, tokens: int) -> None:
    lacking = [package for package in ("torch", "transformers") if peers and find_spec(package) is None]
    if lacking:
        sys.exit(f"--peers needs {', '.join(lacking)}, not installed here; run: pip install -e '.[oracle]'")
    with tempfile.TemporaryDirectory() as folder:
        report = measure(folder, peers, rounds, tokens)
    show(report)
    if peers:  # a run alone must not replace a comparison
        write("mamba", report)


def measure(folder: str, peers: bool, rounds: int, n: int) -> dict:
    """Play the rounds and report on them."""
    if peers:
        writer = multiprocessing.get_context("spawn").Process(target=write_checkpoint, args=(folder,))
        writer.start()  # a process of its own, for merely importing torch slows down what comes after
        writer.join()
    rng, prefills, decodes = np.random.default_rng(0), [], []
    with ExitStack() as stack:
        started = {name: Contestant(partial(OPENED[name], folder)) for name in names(peers)}
        contestants = {name: stack.enter_context(one) for name, one in started.items()}
        for number in range(rounds + 1):
            prompt = rng.integers(0, SIZES["vocab_size"], PROMPT).tolist()
            order = rotated([*contestants], number)
            wait_for_quiet()
            bandwidth = memory_bandwidth()
            prefill = {name: contestants[name].decode(prompt, 0, LONG_TRIES) for name in order}
            decode = {name: contestants[name].decode(prompt[:SHORT_PROMPT], n) for name in order}
            prefills.append(Round(prefill, bandwidth))
            decodes.append(Round(decode, bandwidth))
    prefills, decodes = prefills[1:], decodes[1:]  # some still compile in the first round
    parameters = jax.tree.leaves(minillm.init(SIZES | {"model_type": "mamba"}).shapes)
    weight_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in parameters)
    turns = [turn for one in prefills + decodes for turn in one.turns.values()]
    return {
        "prefill": compared(prefills, PROMPT),
        "decode": compared(decodes, n) | bandwidth_share(decodes, "minillm", n, weight_bytes),
        "others_at_most": rounded(max(turn.others for turn in turns)),
        "setting": {"dtype": "float32", "prompt": PROMPT, "tokens": n, "rounds": rounds, **SIZES},
        **where_and_what(*(["torch", *names(peers)[1:]] if peers else [])),
    }


def names(peers: bool) -> list[str]:
    """Who takes part."""
    return [name for name in OPENED if name == "minillm" or (peers and find_spec(name))]


def compared(rounds: list[Round], n: int) -> dict:
    """Speeds of everyone at n tokens a turn, beside ours."""
    present = [name for name in OPENED if name in rounds[0].turns]
    others = present[1:]
    return {
        "times_as_fast": {f"minillm over {name}": speed_ratio(rounds, "minillm", name) for name in others},
        "speeds": {name: speed(rounds, name, n) for name in present},
        "same_tokens_as_minillm": {name: agreement(rounds, name) for name in others},
    }


def write_checkpoint(folder: str) -> None:
    """A Hugging Face checkpoint with random weights, written by transformers."""
    transformers = import_module("transformers")
    config = transformers.MambaConfig(**SIZES, eos_token_id=None)
    transformers.MambaForCausalLM(config).save_pretrained(folder)


def open_minillm(folder: str) -> Decode:
    """Our own generation; without a checkpoint any random weights will do."""
    lm = minillm.load(folder) if os.listdir(folder) else minillm.init(SIZES | {"model_type": "mamba"})
    model, greedy = lm.model, new_sampler(temperature=0, seed=0)

    def decode(prompt: list[int], n: int) -> tuple[list[int], float]:
        started = time.perf_counter()
        tokens = generate_tokens(model, Plan.of(prompt, n + 1, lm.config.context), greedy)
        first, there = next(tokens), time.perf_counter()
        rest = list(tokens)
        return [first, *rest], time.perf_counter() - there if n else there - started

    return decode


def open_transformers(folder: str) -> Decode:
    """MambaForCausalLM by its own `generate`."""
    torch, transformers = import_module("torch"), import_module("transformers")
    torch.set_num_threads(THREADS)
    model = transformers.MambaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def decode(prompt: list[int], n: int) -> tuple[list[int], float]:
        tokens, clock = torch.tensor([prompt]), Clock()
        options = {"max_new_tokens": n + 1, "do_sample": False, "streamer": clock}
        out = model.generate(tokens, attention_mask=torch.ones_like(tokens), **options)
        asked, first, *_, last = [*clock.times, clock.times[-1]]
        return out[0, len(prompt) :].tolist(), last - first if n else first - asked

    return decode


def open_mambapy(folder: str) -> Decode:
    """mambapy's Mamba between an embedding and a tied head: its own language model needs a GPU library."""
    torch, mamba = import_module("torch"), import_module("mambapy.mamba")
    torch.set_num_threads(THREADS)
    torch.set_grad_enabled(False)
    config = mamba.MambaConfig(d_model=SIZES["hidden_size"], n_layers=SIZES["num_hidden_layers"])
    model, norm = mamba.Mamba(config), mamba.RMSNorm(config.d_model, config.rms_norm_eps)
    stored = import_module("safetensors.torch").load_file(Path(folder) / "model.safetensors")
    stored = {name.removeprefix("backbone."): weight for name, weight in stored.items()}
    embed, weight = stored.pop("embeddings.weight"), stored.pop("norm_f.weight")
    norm.load_state_dict({"weight": weight})
    model.load_state_dict(stored)

    def choose(x) -> int:
        return (norm(x) @ embed.T).argmax(-1).item()

    def decode(prompt: list[int], n: int) -> tuple[list[int], float]:
        tokens, started = torch.tensor(prompt), time.perf_counter()
        if n == 0:
            return [choose(model(embed[tokens[None]])[:, -1])], time.perf_counter() - started
        caches = [(None, torch.zeros(1, config.d_inner, config.d_conv - 1)) for _ in model.layers]
        for token in tokens:
            x, caches = model.step(embed[token[None]], caches)
        out, started = [choose(x)], time.perf_counter()
        for _ in range(n):
            x, caches = model.step(embed[[out[-1]]], caches)
            out.append(choose(x))
        return out, time.perf_counter() - started

    return decode


OPENED = {"minillm": open_minillm, "transformers": open_transformers, "mambapy": open_mambapy}


def show(report: dict) -> None:
    """Print the report's main numbers."""
    table = Table("", "tokens/s", "quartiles", "minillm is (95 %)", "same tokens")
    for task in ("prefill", "decode"):
        over, agreed = report[task]["times_as_fast"], report[task]["same_tokens_as_minillm"]
        for name, found in report[task]["speeds"].items():
            row = [f"{task}: {name}", f"{found['tokens_per_second']:.1f}", span(found["quartiles"], 1)]
            if name in agreed:
                same = agreed[name]
                row += [spread(over[f"minillm over {name}"]), f"{same['before_first_difference']} of {same['of']}"]
            table.add_row(*row)
    Console(width=100).print(table)
    print(f"{report['setting']['rounds']} rounds, others took up to {report['others_at_most']:.0%} of the machine;")
    print(f"decoding, minillm used {report['decode']['bandwidth_share']:.0%} of the memory bandwidth")


if __name__ == "__main__":
    main()
