"""Normalisation of vectors: RMSNorm and LayerNorm.

RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467): divide a vector by its root mean square.

    y_j = x_j / sqrt(mean_j(x_j^2) + eps) * weight_j                               (eq. 4, eps as deployed)

LayerNorm (Ba et al. 2016, arXiv:1607.06450): take away the mean first, and add a bias in the end.

    y_j = (x_j - mean) / sqrt(mean_j((x_j - mean)^2) + eps) * weight_j + bias_j    (eq. 4)
"""

import jax
import jax.numpy as jnp
import numpy as np

from .shapes import shaped


def rms_norm_ref(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """The definition: x [... d], weight [d] -> float64 [... d]."""
    rows = np.asarray(x, np.float64).reshape(-1, np.shape(x)[-1])
    y = np.empty_like(rows)
    for row in range(rows.shape[0]):
        mean_square = sum(float(value) ** 2 for value in rows[row]) / rows.shape[1]
        for j in range(rows.shape[1]):
            y[row, j] = rows[row, j] / np.sqrt(mean_square + eps) * float(weight[j])
    return y.reshape(np.shape(x))


@shaped("x: ... d float, weight: d float")
def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """x [... d], weight [d] -> [... d] in x's dtype; the mean square is taken in float32 or wider."""
    wide = np.promote_types(x.dtype, np.float32)
    x_wide = x.astype(wide)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(x_wide), axis=-1, keepdims=True) + eps)
    return (x_wide * scale * weight.astype(wide)).astype(x.dtype)


def layer_norm_ref(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """The definition: x [... d], weight and bias [d] -> float64 [... d]."""
    rows = np.asarray(x, np.float64).reshape(-1, np.shape(x)[-1])
    y = np.empty_like(rows)
    for row in range(rows.shape[0]):
        mean = sum(float(value) for value in rows[row]) / rows.shape[1]
        variance = sum((float(value) - mean) ** 2 for value in rows[row]) / rows.shape[1]
        for j in range(rows.shape[1]):
            y[row, j] = (rows[row, j] - mean) / np.sqrt(variance + eps) * float(weight[j]) + float(bias[j])
    return y.reshape(np.shape(x))


@shaped("x: ... d float, weight: d float, bias: d float")
def layer_norm(x: jax.Array, weight: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """x [... d], weight and bias [d] -> [... d] in x's dtype; mean and variance are taken in float32 or wider."""
    wide = np.promote_types(x.dtype, np.float32)
    x_wide = x.astype(wide)
    centred = x_wide - jnp.mean(x_wide, axis=-1, keepdims=True)  # first: mean(x^2) - mean^2 would cancel
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)
    return (centred * scale * weight.astype(wide) + bias.astype(wide)).astype(x.dtype)
