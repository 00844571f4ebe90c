"""AWQ and SmoothQuant: factors for the inputs of a matrix that make it, or them, easier to round.

Both keep x W what it is, as (x / s) (s W) with an s for each input, and round s W (`quant.scaled`). AWQ makes those
weights larger that meet large inputs, so that rounding takes less of them. SmoothQuant makes the inputs themselves
smaller where they reach far, since they are rounded too, with one scale for all of a token.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ..quant.storage import Parts, Storage
from .calibration import Inputs
from .importance import weighed, weighs

POWERS = 20  # that AWQ tries, from 0 (no factors) up
MIGRATION = np.float32(0.5)  # of SmoothQuant: how much of what is hard to round goes from the inputs to the weights
LEAST = np.float32(1e-4)  # sizes of inputs below this share of the largest count as this


def awq_factors(w: np.ndarray, inputs: Inputs, storage: Storage) -> tuple[Parts, np.ndarray]:
    """Parts of s W for a matrix W f32 [rows, columns], and 1 / s f32 [columns].

    Lin et al., arXiv:2306.00978, section 3.2: s = (mean |x|)^a. Of the a tried that one is kept whose products
    over the text differ least from those of W. In place of the ranges that they then clip to, scales are searched
    for by importance, and kept if that helps.
    """
    size = np.maximum(inputs.mean, LEAST * inputs.mean.max())
    size /= np.sqrt(size.min() * size.max())
    w_there, gram = jax.device_put((w, inputs.gram))

    def error(parts: Parts, s: np.ndarray) -> float:
        return float(product_error(w_there, jax.device_put(parts), jax.device_put(1 / s), gram, storage))

    powers = (size**power for power in np.arange(POWERS, dtype=np.float32) / POWERS)
    best, s = min(((storage.encode(w * s), s) for s in powers), key=lambda one: error(*one))
    if weighs(storage):
        best = min(best, weighed(w * s, np.diag(inputs.gram) / s**2, storage), key=lambda parts: error(parts, s))
    return best, 1 / s


def smooth_factors(w: np.ndarray, inputs: Inputs) -> np.ndarray:
    """s f32 [columns] for a matrix f32 [rows, columns]; 1 where all inputs or weights are 0.

    Xiao et al., arXiv:2211.10438, equation 4: s = (max |x|)^a / (max |w|)^(1 - a), of each input and its column.
    """
    x, column = inputs.largest, np.max(np.abs(w), axis=0)
    known = (x > 0) & (column > 0)
    x, column = np.where(known, x, 1), np.where(known, column, 1)
    return x**MIGRATION / column ** (1 - MIGRATION)


@partial(jax.jit, static_argnames="storage")
def product_error(
    w: jax.Array, parts: tuple[jax.Array, ...], back: jax.Array, gram: jax.Array, storage: Storage
) -> jax.Array:
    """Σ |e x|² over the inputs, the trace of e G e^T: e = w less what parts stand for, times back [columns]."""
    e = w - storage.decode(parts) * back
    return jnp.sum((e @ gram) * e)
