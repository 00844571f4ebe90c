"""State-space duality, Mamba-2 (Dao and Gu 2024, arXiv:2405.21060; definition in `ref.py`).

With one decay a head the recurrence is also attention, with decays in place of a softmax (the dual form):

    y_t = sum_{s <= t} exp(sum_{s < r <= t} dt_r A) (C_t . B_s) dt_s x_s  +  exp(sum_{r <= t} dt_r A) S_0 C_t

    recurrent  token after token: work grows with t, on vectors
    quadratic  the dual form over all of t: work grows with t^2, on matrices
    chunked    the dual form inside a chunk, the recurrence from chunk to chunk: matrices, and work grows with t

Heads are kept as [g r] inside: the r heads of a group share B and C, and so the products C . B.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..shapes import shaped
from .steps import decay_between, scan_chunks, scan_tokens, step_sizes, zero_padding

SHAPES = """x: b t h k float, dt: b t h float, A: h float, B: b t g n float, C: b t g n float, D: h float,
    dt_bias: h float, state: b h k n float, lengths: b int"""


@shaped(SHAPES)
def recurrent_ssd(
    x: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    D: jax.Array | None = None,
    *,
    dt_bias: jax.Array | None = None,
    softplus: bool = False,
    state: jax.Array | None = None,
    lengths: jax.Array | None = None,
    return_states: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Arguments and result as in `ssd_ref`; y in x's dtype, the state in float32 or wider.

    ValueError if h is not a multiple of g.
    """
    check_groups("recurrent_ssd", x, B)
    tokens, A, start = prepare(x, dt, A, B, C, dt_bias, softplus, state, lengths)

    def step(state: jax.Array, token: Any) -> tuple[jax.Array, Any]:
        x, dt, B, C = token  # b g r k, b g r, b g n, b g n
        added = (dt[..., None] * x)[..., None] * B[:, :, None, None]  # b g r k n
        state = jnp.exp(dt * A)[..., None, None] * state + added
        y = jnp.einsum("bgrkn,bgn->bgrk", state, C)
        return state, (y, state if return_states else None)

    last, (y, states) = scan_tokens(step, start, tokens)
    return finish(y, states if return_states else last, tokens[0], D, x)


@shaped(SHAPES)
def quadratic_ssd(
    x: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    D: jax.Array | None = None,
    *,
    dt_bias: jax.Array | None = None,
    softplus: bool = False,
    state: jax.Array | None = None,
    lengths: jax.Array | None = None,
    return_states: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Arguments and result as in `ssd_ref`; y in x's dtype, the state in float32 or wider.

    ValueError if h is not a multiple of g.
    """
    check_groups("quadratic_ssd", x, B)
    tokens, A, start = prepare(x, dt, A, B, C, dt_bias, softplus, state, lengths)
    y, states = attend_with_decay(A, start, tokens, return_states)
    return finish(y, states if return_states else states[:, -1], tokens[0], D, x)


@shaped(SHAPES)
def chunked_ssd(
    x: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    D: jax.Array | None = None,
    *,
    dt_bias: jax.Array | None = None,
    softplus: bool = False,
    state: jax.Array | None = None,
    lengths: jax.Array | None = None,
    return_states: bool = False,
    chunk: int = 64,
) -> tuple[jax.Array, jax.Array]:
    """Arguments and result as in `ssd_ref`; y in x's dtype, the state in float32 or wider.

    ValueError if h is not a multiple of g, or if `chunk`, the tokens of a chunk, is less than 1.
    """
    check_groups("chunked_ssd", x, B)
    if chunk < 1:
        raise ValueError(f"chunked_ssd: chunk is {chunk}, expected 1 or more")
    tokens, A, start = prepare(x, dt, A, B, C, dt_bias, softplus, state, lengths)

    def step(state: jax.Array, tokens: Any) -> tuple[jax.Array, Any]:
        y, states = attend_with_decay(A, state, tokens, return_states)
        return states[:, -1], (y, states if return_states else None)

    last, (y, states) = scan_chunks(step, start, tokens, chunk)
    return finish(y, states if return_states else last, tokens[0], D, x)


def attend_with_decay(
    A: jax.Array, state: jax.Array, tokens: Any, every_state: bool
) -> tuple[jax.Array, jax.Array]:
    """The dual form: y [b t g r k], and the states after all tokens or only after the last, [b t|1 g r k n]."""
    x, dt, B, C = tokens  # b t g r k, b t g r, b t g n, b t g n
    added = dt[..., None] * x
    log_decay = jnp.moveaxis(dt * A, 1, -1)  # b g r t
    decay = decay_between(log_decay)  # b g r t s
    from_start = jnp.exp(jnp.cumsum(log_decay, axis=-1))  # b g r t

    weights = decay * jnp.einsum("btgn,bsgn->bgts", C, B)[:, :, None]
    y = jnp.einsum("bgrts,bsgrk->btgrk", weights, added)
    y = y + jnp.einsum("bgrt,btgn,bgrkn->btgrk", from_start, C, state)

    wanted = slice(None) if every_state else slice(-1, None)
    states = jnp.einsum("bgrts,bsgrk,bsgn->btgrkn", decay[..., wanted, :], added, B)
    return y, states + jnp.einsum("bgrt,bgrkn->btgrkn", from_start[..., wanted], state)


def prepare(
    x: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    dt_bias: jax.Array | None,
    softplus: bool,
    state: jax.Array | None,
    lengths: jax.Array | None,
) -> tuple[tuple[jax.Array, ...], jax.Array, jax.Array]:
    """The tokens (x, dt, B, C) without padding, A, and the state to begin with: wide, and heads as [g r]."""
    (b, t, h, k), (g, n), wide = x.shape, B.shape[2:], np.promote_types(x.dtype, np.float32)
    state = jnp.zeros((b, h, k, n), wide) if state is None else state.astype(wide)
    x, dt, B, C = zero_padding(lengths, *(array.astype(wide) for array in (x, dt, B, C)))
    dt = step_sizes(dt, dt_bias, softplus, lengths)
    r = h // g
    tokens = x.reshape(b, t, g, r, k), dt.reshape(b, t, g, r), B, C
    return tokens, A.astype(wide).reshape(g, r), state.reshape(b, g, r, k, n)


def finish(
    y: jax.Array, state: jax.Array, real: jax.Array, D: jax.Array | None, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Y plus D x in the shape and dtype of x, and the state: heads are one dimension again.

    `real` is x as `prepare` gives it, without padding.
    """
    if D is not None:
        y = y + D.astype(y.dtype).reshape(*y.shape[2:4], 1) * real
    return y.reshape(x.shape).astype(x.dtype), state.reshape(*state.shape[:-4], x.shape[2], *state.shape[-2:])


def check_groups(op: str, x: jax.Array, B: jax.Array) -> None:
    """ValueError unless the heads divide into groups."""
    h, g = x.shape[2], B.shape[2]
    if h % g:
        raise ValueError(f"{op}: x has h = {h} heads, not a multiple of B's g = {g}")
