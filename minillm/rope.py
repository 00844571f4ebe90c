"""Rotary frequencies of a layer, and how checkpoints stretch them to contexts longer than they were trained on.

A stretched model turns its slow pairs, which never complete a circle in training, more slowly: positions beyond
the training length then give angles that it has seen. The methods differ in which pairs count as slow. Which one
applies, with which numbers, is settled when a checkpoint is opened; what is left is one frequency a pair.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from .ops import apply_rope, rope_frequencies


@dataclass(frozen=True)
class Recipe:
    """How frequencies were made, in the words of a checkpoint, for whoever writes one.

    theta is the base before anything was stretched; `factors` says that no method explains the frequencies.
    fast and slow are yarn's numbers of turns, short and long are longrope's factors.
    """

    kind: Literal["default", "linear", "yarn", "longrope", "factors"]
    theta: float
    factor: float = 1.0
    original: int = 0
    fast: float = 32.0
    slow: float = 1.0
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()


@dataclass(frozen=True)
class Rope:
    """Radians a position for each pair of channels (half-split layout), and a factor on what was turned.

    Fewer frequencies than half the head dimension leave the last channels as they are (partial rotary).
    """

    freqs: tuple[float, ...]
    scale: float = 1.0
    recipe: Recipe = field(default=Recipe("factors", 10000.0), compare=False)

    @staticmethod
    def of(freqs: np.ndarray, recipe: Recipe, scale: float = 1.0) -> "Rope":
        """A Rope from an array of frequencies."""
        return Rope(tuple(float(one) for one in np.asarray(freqs, np.float32)), scale, recipe)

    def turn(self, x: jax.Array, pos: jax.Array) -> jax.Array:
        """Turn x [b t h k] by its positions pos [b t]."""
        y = self.shift(x, pos)
        if self.scale == 1.0:
            return y
        turned = 2 * len(self.freqs)
        return jnp.concatenate([y[..., :turned] * jnp.asarray(self.scale, y.dtype), y[..., turned:]], axis=-1)

    def shift(self, x: jax.Array, by: jax.Array) -> jax.Array:
        """Turn x [b t h k], which was turned already, by so many more positions, [b t]; fewer if negative."""
        return apply_rope(x, by, jnp.asarray(self.freqs, jnp.float32))


MOST_CHANNELS = 1 << 16  # of a head; the number comes from a file nobody vouches for


def default(k: int, theta: float) -> Rope:
    """As trained: theta^(-2j/k)."""
    return Rope.of(rope_frequencies(k, theta), Recipe("default", theta))


def linear(k: int, theta: float, factor: float) -> Rope:
    """Position interpolation (Chen et al. 2023, arXiv:2306.15595): every pair turns `factor` times slower."""
    return Rope.of(rope_frequencies(k, theta) / np.float32(factor), Recipe("linear", theta, factor))


def llama3(k: int, theta: float, factor: float, low: float, high: float, original: int) -> Rope:
    """Llama 3.1: pairs with fewer than `low` turns in `original` tokens slow down by factor, above `high` not."""
    freqs = rope_frequencies(k, theta).astype(np.float64)
    turns = original * freqs / (2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return Rope.of(freqs * (kept + (1 - kept) / factor), Recipe("factors", theta))


def yarn(
    k: int,
    theta: float,
    factor: float,
    original: int,
    fast: float = 32.0,
    slow: float = 1.0,
    truncate: bool = True,
    scale: float | None = None,
) -> Rope:
    """YaRN (Peng et al. 2023, arXiv:2309.00071, section 3.2): a ramp over the pairs, by turns in `original` tokens.

    Pairs with more than `fast` turns stay, those with fewer than `slow` turn `factor` times slower; `truncate`
    rounds the ramp's ends outwards to whole pairs. `scale` is by default the paper's 0.1 ln(factor) + 1 (eq. 22).
    """
    freqs = rope_frequencies(k, theta).astype(np.float64)
    first, last = (k * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta)) for turns in (fast, slow))
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, k - 1)
    slowed = np.clip((np.arange(k // 2) - first) / max(last - first, 1e-3), 0, 1)
    recipe = Recipe("yarn", theta, factor, original, fast, slow)
    return Rope.of(freqs * (1 - slowed + slowed / factor), recipe, yarn_scale(factor) if scale is None else scale)


def yarn_scale(factor: float, weight: float = 1.0) -> float:
    """YaRN's factor on queries and keys: the softmax of a longer context is made sharper again."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def longrope(
    k: int,
    theta: float,
    short: Sequence[float],
    long: Sequence[float],
    stretch: float,
    original: int,
    context: int,
) -> Rope:
    """LongRoPE (Ding et al. 2024, arXiv:2402.13753): a factor for each pair, from two sets of them.

    The long ones serve a model that is opened for a context beyond its original one; `stretch` is by how much it
    was made longer.
    """
    factors = np.asarray(long if context > original else short, np.float32)
    scale = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    recipe = Recipe("longrope", theta, stretch, original, short=tuple(short), long=tuple(long))
    return Rope.of(rope_frequencies(k, theta) / factors, recipe, scale)
