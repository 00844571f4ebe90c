"""Activations of feed-forward layers: results in the argument's dtype, arithmetic in float32 or wider.

silu      x sigmoid(x)                               Elfwing et al. 2017, arXiv:1702.03118 (swish)
gelu      x Phi(x), Phi the normal distribution      Hendrycks and Gimpel 2016, arXiv:1606.08415
gelu_tanh the same by a tanh that nearly fits        section 2
relu2     max(x, 0)^2                                So et al. 2021, arXiv:2109.08668
softplus  log(1 + e^x)                               Dugas et al. 2000; Mamba's step sizes
swiglu    silu(gate) up                              Shazeer 2020, arXiv:2002.05202
clamped_swiglu                                       gpt-oss, arXiv:2508.10925
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from .shapes import shaped, widened

GELU_SLOPE = 1.702  # x sigmoid(1.702 x) nearly fits gelu (Hendrycks and Gimpel, section 2)


def sigmoid_ref(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x), without overflow: e is never raised to a positive power."""
    x = np.asarray(x, np.float64)
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, small) / (1 + small)


def silu_ref(x: np.ndarray) -> np.ndarray:
    """The definition: x [...] -> float64 [...]."""
    return np.asarray(x, np.float64) * sigmoid_ref(x)


def gelu_ref(x: np.ndarray) -> np.ndarray:
    """The definition: x [...] -> float64 [...]; Phi(x) = erfc(-x / sqrt(2)) / 2 keeps its digits for x << 0."""
    phi = np.vectorize(lambda value: math.erfc(-value / math.sqrt(2)) / 2, otypes=[np.float64])
    x = np.asarray(x, np.float64)
    return x * phi(x)


def gelu_tanh_ref(x: np.ndarray) -> np.ndarray:
    """The definition: x [...] -> float64 [...]."""
    x = np.asarray(x, np.float64)
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def relu2_ref(x: np.ndarray) -> np.ndarray:
    """The definition: x [...] -> float64 [...]."""
    return np.maximum(np.asarray(x, np.float64), 0) ** 2


def softplus_ref(x: np.ndarray) -> np.ndarray:
    """The definition: x [...] -> float64 [...]."""
    return np.logaddexp(0, np.asarray(x, np.float64))


def swiglu_ref(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """The definition: gate, up [... f] -> float64 [... f]."""
    return silu_ref(gate) * np.asarray(up, np.float64)


def clamped_swiglu_ref(gate: np.ndarray, up: np.ndarray, limit: float = 7.0) -> np.ndarray:
    """gate, up [... f] -> float64 [... f]: gate at most `limit`, up within +-limit and then around 1."""
    gate = np.minimum(np.asarray(gate, np.float64), limit)
    up = np.clip(np.asarray(up, np.float64), -limit, limit)
    return gate * sigmoid_ref(GELU_SLOPE * gate) * (up + 1)


@shaped("x: ... float")
def silu(x: jax.Array) -> jax.Array:
    """x [...] -> [...]: x sigmoid(x)."""
    return (widened(x) * jax.nn.sigmoid(widened(x))).astype(x.dtype)


@shaped("x: ... float")
def gelu(x: jax.Array) -> jax.Array:
    """x [...] -> [...]: x Phi(x), by the error function."""
    return jax.nn.gelu(widened(x), approximate=False).astype(x.dtype)


@shaped("x: ... float")
def gelu_tanh(x: jax.Array) -> jax.Array:
    """x [...] -> [...]: `gelu` to about three digits, as GPT-2 and Gemma were trained with."""
    return jax.nn.gelu(widened(x), approximate=True).astype(x.dtype)


@shaped("x: ... float")
def relu2(x: jax.Array) -> jax.Array:
    """x [...] -> [...]: max(x, 0)^2."""
    return jnp.square(jnp.maximum(widened(x), 0)).astype(x.dtype)


@shaped("x: ... float")
def softplus(x: jax.Array) -> jax.Array:
    """x [...] -> [...]: log(1 + e^x), without overflow."""
    return jnp.logaddexp(widened(x), 0).astype(x.dtype)


@shaped("gate: ... f float, up: ... f float")
def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """gate, up [... f] -> [... f] in gate's dtype: silu(gate) up."""
    return (widened(gate) * jax.nn.sigmoid(widened(gate)) * widened(up)).astype(gate.dtype)


@shaped("gate: ... f float, up: ... f float")
def clamped_swiglu(gate: jax.Array, up: jax.Array, limit: float = 7.0) -> jax.Array:
    """gate, up [... f] -> [... f] in gate's dtype, as in `clamped_swiglu_ref`. ValueError for a limit <= 0."""
    if not limit > 0:
        raise ValueError(f"clamped_swiglu: limit is {limit}, expected more than 0")
    capped = jnp.minimum(widened(gate), limit)
    linear = jnp.clip(widened(up), -limit, limit) + 1
    return (capped * jax.nn.sigmoid(GELU_SLOPE * capped) * linear).astype(gate.dtype)
