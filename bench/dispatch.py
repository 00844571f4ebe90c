"""What calling a model costs before anything is computed: `python -m bench.dispatch`.

A step of decoding is short, so the host's own work counts: finding the program that belongs to these arguments, and
handing it their arrays. Here the same model with the same memory is frozen dataclasses that JAX looks into
(`flax.struct`, as minillm's are), linen modules and nnx modules. It has as many arrays as SmolLM2-135M, each so
small that only the host's work is left. Writes results/dispatch.json.
"""

import time
from collections.abc import Callable
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx, struct

from .report import ratio, rounded, show_table, span, table, where_and_what, write
from .timing import rotated, wait_for_quiet

LAYERS, D = 30, 8
MATRICES = ("qkv", "out", "up", "down")
CALLS = 100  # of a turn

Step = Callable[[], Any]  # a step; what is remembered of it is kept for the next
OURS, LINEN, NNX = "flax.struct", "linen", "nnx"


def through(
    x: jax.Array, norms: tuple[jax.Array, jax.Array], matrices: list[jax.Array], memory: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """A layer of two norms and four products, and what it remembers."""
    qkv, out, up, down = matrices
    memory = memory + x * norms[0]
    x = x + memory @ qkv @ out
    return x + (x * norms[1]) @ up @ down, memory


@struct.dataclass
class Layer:
    """A layer as a pytree."""

    norms: tuple[jax.Array, jax.Array]
    matrices: list[jax.Array]

    def __call__(self, x: jax.Array, memory: jax.Array) -> tuple[jax.Array, jax.Array]:
        return through(x, self.norms, self.matrices, memory)


@struct.dataclass
class Layers:
    """All layers."""

    layers: tuple[Layer, ...]

    def __call__(self, x: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        kept = []
        for layer, memory in zip(self.layers, state, strict=True):
            x, memory = layer(x, memory)
            kept.append(memory)
        return x, tuple(kept)


class LinenLayer(linen.Module):
    """The same layer in linen."""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        ones = linen.initializers.ones
        norms = self.param("norm_0", ones, (D,)), self.param("norm_1", ones, (D,))
        matrices = [self.param(name, ones, (D, D)) for name in MATRICES]
        memory = self.variable("cache", "memory", jnp.zeros, (1, D))
        x, kept = through(x, norms, matrices, memory.value)
        if not self.is_initializing():
            memory.value = kept
        return x


class LinenLayers(linen.Module):
    """All layers."""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(LAYERS):
            x = LinenLayer()(x)
        return x


class NnxLayer(nnx.Module):
    """The same layer in nnx."""

    def __init__(self):
        self.norm_0, self.norm_1 = nnx.Param(jnp.ones(D)), nnx.Param(jnp.ones(D))
        for name in MATRICES:
            setattr(self, name, nnx.Param(jnp.ones((D, D))))
        self.memory = nnx.Cache(jnp.zeros((1, D)))

    def __call__(self, x: jax.Array) -> jax.Array:
        norms = self.norm_0[...], self.norm_1[...]
        x, self.memory[...] = through(x, norms, [getattr(self, name)[...] for name in MATRICES], self.memory[...])
        return x


class NnxLayers(nnx.Module):
    """All layers."""

    def __init__(self):
        self.layers = nnx.List([NnxLayer() for _ in range(LAYERS)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = layer(x)
        return x


def our_step(x: jax.Array) -> Step:
    """Memory is an argument, and its room is used again."""
    one = jnp.ones(D)
    model = Layers(tuple(Layer((one, one), [jnp.ones((D, D)) for _ in MATRICES]) for _ in range(LAYERS)))
    program = jax.jit(lambda model, x, state: model(x, state), donate_argnums=2)
    state = tuple(jnp.zeros((1, D)) for _ in range(LAYERS))

    def step() -> jax.Array:
        nonlocal state
        y, state = program(model, x, state)
        return y

    return step


def linen_step(x: jax.Array) -> Step:
    """Memory is a collection of variables that may change."""
    module = LinenLayers()
    variables = module.init(jax.random.key(0), x)
    params, cache = variables["params"], variables["cache"]
    program = jax.jit(
        lambda params, cache, x: module.apply({"params": params, "cache": cache}, x, mutable=["cache"]),
        donate_argnums=1,
    )

    def step() -> jax.Array:
        nonlocal cache
        y, changed = program(params, cache, x)
        cache = changed["cache"]
        return y

    return step


def nnx_step(x: jax.Array) -> Step:
    """Memory is part of the module, which a step changes."""
    model, program = NnxLayers(), nnx.jit(lambda model, x: model(x))
    return lambda: program(model, x)


def steps() -> dict[str, Step]:
    """A compiled step of each, as its documentation has it called."""
    x = jnp.ones((1, D))
    return {OURS: our_step(x), LINEN: linen_step(x), NNX: nnx_step(x)}


@click.command(help=__doc__)
@click.option("--rounds", default=9, show_default=True, type=click.IntRange(1), help="Turns of each.")
def main(rounds: int) -> None:
    report = measure(steps(), rounds) | where_and_what()
    show_table(report["table"])
    write("dispatch", report)


def measure(played_by: dict[str, Step], rounds: int) -> dict[str, Any]:
    """Play the rounds and report on them."""
    for step in played_by.values():
        host_seconds(step)  # compiles
    played = []
    for number in range(rounds):
        wait_for_quiet()
        played.append({name: host_seconds(played_by[name]) for name in rotated([*played_by], number)})
    ms = {name: [1e3 * turns[name] for turns in played] for name in played_by}
    return {
        "times_as_fast": {
            f"{OURS} over {name}": ratio([turns[name] / turns[OURS] for turns in played]) for name in (LINEN, NNX)
        },
        "ms": {name: rounded(np.median(found)) for name, found in ms.items()},
        "table": table(
            ("", "ms a call", "quartiles"),
            [
                (name, f"{np.median(found):.3f}", span(np.percentile(found, (25, 75)).tolist(), 3))
                for name, found in ms.items()
            ],
        ),
        "setting": {"rounds": rounds, "layers": LAYERS, "arrays": LAYERS * (3 + len(MATRICES))},
    }


def host_seconds(step: Step) -> float:
    """Median seconds until a call returns, whose result may come later."""
    seconds = []
    for _ in range(CALLS):
        began = time.perf_counter()
        y = step()
        seconds.append(time.perf_counter() - began)
        y.block_until_ready()
    return float(np.median(seconds))


if __name__ == "__main__":
    main()
