"""Time and memory of one decoded token against the length of the text: `python -m bench.growth`.

Small random models, alike but for what they remember: keys and values of all tokens or of the last 1,024, one
latent a token, a state of fixed size, or a mixture. A step reads all weights and all it remembers: its time should
grow like those bytes. Writes results/growth.json and, with the `plots` extra, results/growth.png.
"""

import gc
import statistics
import time
from pathlib import Path
from typing import Any

import click
import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import minillm
from minillm.cache import StateSpec
from minillm.generate import advance, i32
from minillm.lm import LM
from minillm.sampling import new_sampler
from minillm.xla import on_device

from .report import RESULTS, pyplot, rounded, where_and_what, write
from .timing import rotated, wait_for_quiet

CONTEXTS = (256, 1024, 4096, 16384, 65536)
STEPS = 12

SIZES: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 4096,
    "max_position_embeddings": CONTEXTS[-1],
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
}
STATE_SPACE: dict[str, Any] = {
    "hidden_size": 512,
    "num_hidden_layers": 16,
    "vocab_size": 4096,
    "tie_word_embeddings": True,
    "layer_norm_epsilon": 1e-5,
}
MODELS: dict[str, dict[str, Any]] = {
    "transformer": SIZES | {"model_type": "llama"},
    "window of 1,024": SIZES | {"model_type": "mistral", "sliding_window": 1024},
    "latent attention": SIZES
    | {
        "model_type": "deepseek_v2",
        "kv_lora_rank": 128,
        "q_lora_rank": None,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "v_head_dim": 64,
        "num_key_value_heads": 8,
        "first_k_dense_replace": SIZES["num_hidden_layers"],
        "n_routed_experts": 8,
        "moe_intermediate_size": 64,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "routed_scaling_factor": 1.0,
    },
    "Mamba": STATE_SPACE | {"model_type": "mamba", "state_size": 16},
    "Mamba-2": STATE_SPACE
    | {"model_type": "mamba2", "state_size": 64, "num_heads": 16, "head_dim": 64, "n_groups": 1},
    "hybrid, 1 layer in 8 attends": SIZES
    | {
        "model_type": "jamba",
        "num_experts": 1,
        "num_experts_per_tok": 1,
        "expert_layer_period": 1,
        "expert_layer_offset": 0,
        "attn_layer_period": 8,
        "attn_layer_offset": 4,
        "mamba_d_state": 16,
        "mamba_expand": 2,
        "mamba_d_conv": 4,
    },
}


@click.command(help=__doc__)
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Turns of each.")
@click.option("--longest", default=CONTEXTS[-1], show_default=True, help="No context above this.")
def main(rounds: int, longest: int) -> None:
    contexts = [context for context in CONTEXTS if context <= longest]
    report = measure(rounds, contexts)
    show(report)
    write("growth", report)
    plot(report, RESULTS / "growth.png")


def measure(rounds: int, contexts: list[int]) -> dict:
    """Play the rounds and report on them."""
    models = {name: minillm.init(config) for name, config in MODELS.items()}
    turns = [(name, context) for name in models for context in contexts]
    times: dict[tuple[str, int], list[float]] = {turn: [] for turn in turns}
    for number in range(rounds):
        wait_for_quiet()
        for turn in rotated(turns, number):
            times[turn].append(step_seconds(models[turn[0]], turn[1]))
    return {
        "models": {
            name: grown(lm, contexts, [times[name, context] for context in contexts]) for name, lm in models.items()
        },
        "setting": {"contexts": contexts, "rounds": rounds, "steps": STEPS, "dtype": "float32"},
        **where_and_what(),
    }


def step_seconds(lm: LM, context: int) -> float:
    """Median seconds of a decode step whose memory ends with `context` tokens."""
    model, greedy, token = lm.model, new_sampler(temperature=0, seed=0), on_device(np.zeros((1, 1), np.int32))
    state = model.init_state(StateSpec(slots=1, max_len=context))
    seconds = []
    for place in range(context - STEPS - 3, context):
        started = time.perf_counter()
        state, _, token = advance(model, state, None, greedy, token, i32(place), i32(1))
        token.block_until_ready()
        seconds.append(time.perf_counter() - started)
    del state
    gc.collect()
    return statistics.median(seconds[3:])  # the first ones compile and touch fresh memory


def grown(lm: LM, contexts: list[int], times: list[list[float]]) -> dict:
    """A model's times and bytes by context; growth compares turns of one round with its shortest context."""
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(lm.model))
    memory = [lm.model.state_bytes(StateSpec(slots=1, max_len=context)) for context in contexts]
    growth = [np.array(there) / np.array(times[0]) for there in times]
    return {
        "weight_bytes": weights,
        "state_bytes": memory,
        "ms": [rounded(1e3 * statistics.median(there)) for there in times],
        "growth": [rounded(np.median(one)) for one in growth],
        "growth_quartiles": [[rounded(end) for end in np.percentile(one, (25, 75))] for one in growth],
        "growth_of_bytes": [rounded((weights + there) / (weights + memory[0])) for there in memory],
    }


def show(report: dict) -> None:
    """Print the report's main numbers."""
    contexts = report["setting"]["contexts"]
    table = Table(
        "a token's time (and bytes), relative", *(f"{context:,}" for context in contexts), "memory at the end"
    )
    for name, found in report["models"].items():
        cells = [f"{a:.2f} ({b:.2f})" for a, b in zip(found["growth"], found["growth_of_bytes"], strict=True)]
        table.add_row(f"{name}, {found['ms'][0]:.1f} ms", *cells, f"{found['state_bytes'][-1] / 1e6:,.1f} MB")
    Console(width=130).print(table)


def plot(report: dict, path: Path) -> None:
    """Time and memory against context, one line a model; nothing without matplotlib."""
    plt = pyplot()
    if plt is None:
        return
    contexts = report["setting"]["contexts"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for name, found in report["models"].items():
        (line,) = left.plot(contexts, found["ms"], "o-", label=name, markersize=4)
        theory = [found["ms"][0] * one for one in found["growth_of_bytes"]]
        left.plot(contexts, theory, ":", color=line.get_color(), linewidth=1)
        right.plot(contexts, [one / 1e6 for one in found["state_bytes"]], "o-", markersize=4)
    left.set(title="time of one decoded token (dotted: as its bytes grow)", ylabel="ms", yscale="log")
    right.set(title="memory of one sequence", ylabel="MB", yscale="log")
    for axis in (left, right):
        axis.set(xscale="log", xlabel="context in tokens")
        axis.set_xticks(contexts, [f"{context:,}" for context in contexts])
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
