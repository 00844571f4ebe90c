"""Causal depthwise convolution: every channel is a weighted sum of its last w inputs.

    y_t = bias + sum_{j=0}^{w-1} weight_j x_{t-(w-1)+j}

It stands in front of the scan in each Mamba block (Gu and Dao 2023, arXiv:2312.00752, figure 3), with w = 4. No
activation is applied here. The state is the last w - 1 inputs, oldest first.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ..shapes import shaped
from .steps import zero_padding

SHAPES = "x: b t i float, weight: i w float, bias: i float, state: b m i float, lengths: b int"  # m is w - 1


def causal_conv1d_ref(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    state: np.ndarray | None = None,
    lengths: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The definition: x [b t i], weight [i w], bias [i] -> float64 y [b t i] and state [b w-1 i].

    `state` is the inputs before x (None is zeros); of row b only the first lengths[b] tokens are real (None is
    all): the others do not enter the state, may hold anything, and get y = 0.
    """
    (batch, times, inner), w = x.shape, weight.shape[1]
    x, weight = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    bias = np.zeros(inner) if bias is None else np.asarray(bias, np.float64)
    state = np.zeros((batch, w - 1, inner)) if state is None else np.asarray(state, np.float64)
    lengths = np.full(batch, times) if lengths is None else lengths
    y, last = np.zeros_like(x), np.zeros_like(state)

    for b in range(batch):
        inputs = [*state[b], *x[b, : lengths[b]]]
        for t in range(lengths[b]):
            y[b, t] = bias + sum(weight[:, j] * inputs[t + j] for j in range(w))
        last[b] = np.reshape(inputs[lengths[b] :], (w - 1, inner))
    return y, last


@shaped(SHAPES)
def causal_conv1d(
    x: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None = None,
    *,
    state: jax.Array | None = None,
    lengths: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Arguments and result as in `causal_conv1d_ref`; both in x's dtype, as the state is a copy of inputs.

    ValueError if the state does not hold w - 1 inputs.
    """
    (b, t, i), w, wide = x.shape, weight.shape[1], np.promote_types(x.dtype, np.float32)
    if state is not None and state.shape[1] != w - 1:
        raise ValueError(f"causal_conv1d: state [b w-1 i] has {state.shape[1]} inputs, but weight has w = {w}")
    before = jnp.zeros((b, w - 1, i), x.dtype) if state is None else state.astype(x.dtype)
    (x,) = zero_padding(lengths, x)
    inputs = jnp.concatenate([before, x], axis=1)  # x_t stands in row t + w - 1

    y = jnp.zeros((b, t, i), wide) if bias is None else jnp.broadcast_to(bias.astype(wide), (b, t, i))
    for j in range(w):
        y = y + weight[:, j].astype(wide) * inputs[:, j : j + t].astype(wide)
    (y,) = zero_padding(lengths, y.astype(x.dtype))

    if lengths is None:
        return y, inputs[:, t:]
    last = lengths[:, None] + jnp.arange(w - 1, dtype=lengths.dtype)  # b w-1
    return y, jnp.take_along_axis(inputs, last[:, :, None], axis=1)
