"""Decoding with half of the feed-forward channels: `python -m bench.pruning`.

SmolLM2-135M in float32 beside itself without every second channel, by `minillm.compress.prune`: the feed-forward
layers alone, and a whole greedy step with all that was not pruned. Both take turns in one process; what counts is
the ratio within a round. Speed does not depend on which channels go. Writes results/pruning.json.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import minillm
from minillm.blocks import MLP
from minillm.cache import StateSpec
from minillm.compress.calibration import calibrated, windows
from minillm.compress.prune import without_channels
from minillm.generate import advance, i32
from minillm.model import Model
from minillm.sampling import new_sampler
from minillm.span import Span
from minillm.texts import calibration
from minillm.xla import on_device

from .report import ratio, rounded, spread, where_and_what, write
from .timing import rotated, wait_for_quiet

MODEL, SHARE, CONTEXT = "smollm2-135m", 0.5, 256
WARM = 3  # steps of a turn that do not count


@click.command(help=__doc__)
@click.option("--rounds", default=12, show_default=True, type=click.IntRange(1), help="Turns of each.")
@click.option("--steps", default=24, show_default=True, type=click.IntRange(1, 200), help="Steps of a turn.")
def main(rounds: int, steps: int) -> None:
    full, pruned = both()
    parts = {"feed-forward": feed_forward, "whole step": whole_step}
    report = {
        "pruned_over_full": {name: measure(part, full, pruned, rounds, steps) for name, part in parts.items()},
        "parameters": [sum(leaf.size for leaf in jax.tree.leaves(model)) for model in (full, pruned)],
        "setting": {
            "model": MODEL,
            "dtype": "float32",
            "share_of_channels_gone": SHARE,
            "context": CONTEXT,
            "rounds": rounds,
            "steps": steps,
        },
        **where_and_what(),
    }
    show(report)
    write("pruning", report)


def both() -> tuple[Model, Model]:
    """The model and what is left of it, both stored as loaded: as steps of one token want it."""
    lm = minillm.load(MODEL)
    assert lm.tokenizer is not None
    *_, inputs = calibrated(lm.model, iter(windows(lm.tokenizer, calibration(), CONTEXT)[:1]))
    pruned, _ = without_channels(lm.model, lm.config, SHARE, inputs)
    return lm.model, pruned


def measure(
    part: Callable[[Model, int], float], full: Model, pruned: Model, rounds: int, steps: int
) -> dict[str, Any]:
    """How many times as fast the pruned model's part is, and the milliseconds of both."""
    models = {"full": full, "pruned": pruned}
    for model in models.values():
        part(model, 1)  # compiles
    turns = []
    for number in range(rounds):
        wait_for_quiet()
        turns.append({name: part(models[name], steps) for name in rotated([*models], number)})
    return {
        "times as fast": ratio([turn["full"] / turn["pruned"] for turn in turns]),
        "ms": {name: rounded(1e3 * statistics.median(turn[name] for turn in turns)) for name in models},
    }


def feed_forward(model: Model, steps: int) -> float:
    """Median seconds of one token's way through the feed-forward layers, one after the other."""
    layers = tuple(block for block in model.blocks if isinstance(block, MLP))
    x = jnp.ones((1, 1, model.embed.shape[1]), jnp.float32)
    return median_seconds(lambda place: through(layers, x), steps)


@jax.jit
def through(layers: tuple[MLP, ...], x: jax.Array) -> jax.Array:
    """x [1, 1, d] after all layers."""
    at = Span.chain(jnp.zeros(1, jnp.int32), jnp.ones(1, jnp.int32), 1)
    for layer in layers:
        x, _ = layer(x, None, at)
    return x


def whole_step(model: Model, steps: int) -> float:
    """Median seconds of a greedy step whose memory ends with CONTEXT tokens."""
    greedy, token = new_sampler(temperature=0, seed=0), on_device(np.zeros((1, 1), np.int32))
    state = model.init_state(StateSpec(slots=1, max_len=CONTEXT))

    def step(place: int) -> jax.Array:
        nonlocal state, token
        state, _, token = advance(model, state, None, greedy, token, i32(CONTEXT - steps - WARM + place), i32(1))
        return token

    return median_seconds(step, steps)


def median_seconds(step: Callable[[int], jax.Array], steps: int) -> float:
    """Of so many steps, after a few that touch fresh memory."""
    seconds = []
    for place in range(steps + WARM):
        started = time.perf_counter()
        step(place).block_until_ready()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[WARM:])


def show(report: dict) -> None:
    """Print the report's main numbers."""
    table = Table("", "times as fast (95 %)", "ms, full", "ms, pruned")
    for name, found in report["pruned_over_full"].items():
        ms = [f"{found['ms'][which]:.2f}" for which in ("full", "pruned")]
        table.add_row(name, spread(found["times as fast"]), *ms)
    Console(width=100).print(table)
    before, after = report["parameters"]
    print(f"{before:,} -> {after:,} parameters; {report['setting']['rounds']} rounds")


if __name__ == "__main__":
    main()
