"""What the recurrent ops share: the steps of time, taken one by one or chunk by chunk.

A token whose arrays are all zero is no step at all: the decay is exp(0) = 1 and nothing is added. So padding is
turned into zeros, and so is filled up what is missing to a multiple of the chunk.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def zero_padding(lengths: jax.Array | None, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Arrays [b t ...] with 0 from lengths [b] on; by `where`, as padding may hold NaN."""
    if lengths is None:
        return arrays
    real = jnp.arange(arrays[0].shape[1], dtype=lengths.dtype) < lengths[:, None]  # b t
    return tuple(jnp.where(real.reshape(*real.shape, *[1] * (x.ndim - 2)), x, 0) for x in arrays)


def step_sizes(dt: jax.Array, dt_bias: jax.Array | None, softplus: bool, lengths: jax.Array | None) -> jax.Array:
    """The steps taken: dt [b t ...] plus dt_bias, through softplus if asked for; 0 again where dt is padding."""
    if dt_bias is not None:
        dt = dt + dt_bias.astype(dt.dtype)
    return zero_padding(lengths, jax.nn.softplus(dt) if softplus else dt)[0]


def scan_tokens(step: Callable, state: Any, tokens: Any, keep_every: int | None = None) -> tuple[Any, Any]:
    """`lax.scan` of step(state, token) -> (state, outputs) over axis 1 of `tokens`; outputs are [b t ...] too.

    With keep_every = k a gradient keeps one state in k and computes the others anew: where states are large, that
    is sooner done than fetching them from memory.
    """
    if keep_every is not None:
        again = jax.checkpoint(step, prevent_cse=False)
        part = jax.checkpoint(lambda state, tokens: scan_tokens(again, state, tokens), prevent_cse=False)
        return scan_chunks(part, state, tokens, keep_every)
    tokens = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), tokens)
    state, outputs = jax.lax.scan(step, state, tokens)
    return state, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), outputs)


def scan_chunks(step: Callable, state: Any, tokens: Any, chunk: int) -> tuple[Any, Any]:
    """Like `scan_tokens`, but `step` gets and gives `chunk` tokens at a time, [b c ...]."""
    t = jax.tree.leaves(tokens)[0].shape[1]
    chunk = min(chunk, t)

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, -t % chunk)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(x.shape[0], -1, chunk, *x.shape[2:])

    state, outputs = scan_tokens(step, state, jax.tree.map(split, tokens))
    return state, jax.tree.map(lambda x: x.reshape(x.shape[0], -1, *x.shape[3:])[:, :t], outputs)


def decay_between(log_decay: jax.Array) -> jax.Array:
    """What is left at t of what came in at s: log_decay [... t] -> exp(sum of s < r <= t) [... t s], 0 if s > t.

    Each sum is taken over its own terms. A difference of two sums from the start would cancel: after a decay of
    e^-1000 float32 knows only four digits of what happens between its neighbours.
    """
    t = log_decay.shape[-1]
    terms = jnp.where(np.tri(t, k=-1, dtype=bool), log_decay[..., :, None], 0)  # [r, s]: counts if r > s
    sums = jnp.cumsum(terms, axis=-2)
    return jnp.exp(jnp.where(np.tri(t, dtype=bool), sums, -jnp.inf))
