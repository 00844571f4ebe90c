"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864): turn channel pairs by position.

Pair j of a head is turned by the angle pos * freqs[j]. A dot product of two turned vectors then depends on
their positions only through the difference. Which two channels form pair j is a convention of the checkpoint,
and mixing the two up gives text that is fluent for a while and then is not:

    half         channels j and j + k/2      Hugging Face
    interleaved  channels 2j and 2j + 1      the paper, Meta's own files, GGUF llama

With fewer frequencies than k/2 only the first 2 * len(freqs) channels turn (partial rotary).
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from .shapes import shaped

Layout = Literal["half", "interleaved"]


def rope_frequencies(k: int, theta: float) -> np.ndarray:
    """Radians a position for each channel pair: theta^(-2j/k), float32 [k/2] (section 3.2.2)."""
    return (theta ** (-np.arange(0, k, 2) / k)).astype(np.float32)


def apply_rope_ref(x: np.ndarray, pos: np.ndarray, freqs: np.ndarray, layout: Layout = "half") -> np.ndarray:
    """The definition: x [b t h k], pos [b t], freqs [<= k/2] -> float64 [b t h k] (eq. 15, pair by pair)."""
    y = np.array(x, np.float64)
    half = len(freqs)
    for row, time in np.ndindex(*np.shape(pos)):
        for j in range(half):
            first, second = (j, j + half) if layout == "half" else (2 * j, 2 * j + 1)
            angle = float(pos[row, time]) * float(freqs[j])
            a = np.array(y[row, time, :, first])
            b = np.array(y[row, time, :, second])
            y[row, time, :, first] = a * np.cos(angle) - b * np.sin(angle)
            y[row, time, :, second] = a * np.sin(angle) + b * np.cos(angle)
    return y


@shaped("x: b t h k float, pos: b t int, freqs: j float")
def apply_rope(x: jax.Array, pos: jax.Array, freqs: jax.Array, layout: Layout = "half") -> jax.Array:
    """Turn x [b t h k] by its positions pos [b t] -> [b t h k] in x's dtype; angles in float32 or wider.

    ValueError if `layout` is neither of the two or there are more than k/2 frequencies.
    """
    if layout not in ("half", "interleaved"):
        raise ValueError(f"apply_rope: layout is {layout!r}, expected 'half' or 'interleaved'")
    half = freqs.shape[0]
    if 2 * half > x.shape[-1]:
        raise ValueError(f"apply_rope: freqs [j] has j = {half}, more than half of x's k = {x.shape[-1]}")
    wide = np.promote_types(x.dtype, np.float32)
    angle = pos.astype(wide)[:, :, None, None] * jnp.asarray(freqs, wide)  # b t 1 k/2
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    turned, rest = x[..., : 2 * half].astype(wide), x[..., 2 * half :]
    if layout == "half":
        a, b = turned[..., :half], turned[..., half:]
        y = jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
    else:
        a, b = turned[..., 0::2], turned[..., 1::2]
        y = jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(turned.shape)
    return jnp.concatenate([y.astype(x.dtype), rest], axis=-1)
