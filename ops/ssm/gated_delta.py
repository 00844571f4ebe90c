"""The gated delta rule (Yang et al. 2024, arXiv:2412.06464; definition in `ref.py`): a memory that overwrites.

Before v_t is written under k_t, what the memory holds there is read and subtracted, so the token really adds
(with S's keys first)

    u_t = beta_t (v_t - alpha_t S_{t-1}^T k_t)          S_t = alpha_t S_{t-1} + k_t u_t^T

    recurrent  this, token after token
    chunked    all u_t of a chunk at once. With d_ts the decay from s to t and d_t the one from the chunk's start,
               S_t = d_t S_0 + sum_{s <= t} d_ts k_s u_s^T, put into the equation for u_t, gives

                   u_t + beta_t sum_{s < t} d_ts (k_t . k_s) u_s = beta_t (v_t - d_t S_0^T k_t)

               a unit lower triangular system in the rows u_t. With U known the rest is attention with decays on
               the values U, as in `ssd.py`. (The WY form of the papers keeps the inverse of this matrix apart from
               S_0; here chunks follow one another, S_0 is known, and one solve is enough.)
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..shapes import shaped
from .steps import decay_between, scan_chunks, scan_tokens, zero_padding

SHAPES = """q: b t h k float, k: b t h k float, v: b t h j float, log_decay: b t h float, beta: b t h float,
    state: b h k j float, lengths: b int"""


@shaped(SHAPES)
def recurrent_gated_delta(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    beta: jax.Array,
    *,
    scale: float | None = None,
    state: jax.Array | None = None,
    lengths: jax.Array | None = None,
    return_states: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Arguments and result as in `gated_delta_ref`; y in v's dtype, the state in float32 or wider."""
    tokens, start = prepare(q, k, v, log_decay, beta, scale, state, lengths)

    def step(state: jax.Array, token: Any) -> tuple[jax.Array, Any]:
        q, k, v, log_decay, beta = token  # b h k, b h k, b h j, b h, b h
        state = jnp.exp(log_decay)[..., None, None] * state
        held = jnp.einsum("bhkj,bhk->bhj", state, k)
        state = state + k[..., None] * (beta[..., None] * (v - held))[..., None, :]
        y = jnp.einsum("bhkj,bhk->bhj", state, q)
        return state, (y, state if return_states else None)

    last, (y, states) = scan_tokens(step, start, tokens)
    return y.astype(v.dtype), states if return_states else last


@shaped(SHAPES)
def chunked_gated_delta(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    beta: jax.Array,
    *,
    scale: float | None = None,
    state: jax.Array | None = None,
    lengths: jax.Array | None = None,
    return_states: bool = False,
    chunk: int = 32,
) -> tuple[jax.Array, jax.Array]:
    """Arguments and result as in `gated_delta_ref`; y in v's dtype, the state in float32 or wider.

    Rounding errors of a chunk grow with its length: 32 tokens are as fast as 64 on a CPU and less wrong.
    ValueError if `chunk`, the tokens of a chunk, is less than 1.
    """
    if chunk < 1:
        raise ValueError(f"chunked_gated_delta: chunk is {chunk}, expected 1 or more")
    tokens, start = prepare(q, k, v, log_decay, beta, scale, state, lengths)

    def step(state: jax.Array, tokens: Any) -> tuple[jax.Array, Any]:
        y, states = solve_chunk(state, tokens, return_states)
        return states[:, -1], (y, states if return_states else None)

    last, (y, states) = scan_chunks(step, start, tokens, chunk)
    return y.astype(v.dtype), states if return_states else last


def solve_chunk(state: jax.Array, tokens: Any, every_state: bool) -> tuple[jax.Array, jax.Array]:
    """One chunk: y [b t h j], and the states after all tokens or only after the last, [b t|1 h k j]."""
    q, k, v, log_decay, beta = (jnp.moveaxis(x, 1, 2) for x in tokens)  # b h t ...
    decay = decay_between(log_decay)  # b h t s
    from_start = jnp.exp(jnp.cumsum(log_decay, axis=-1))[..., None]  # b h t 1
    beta = beta[..., None]

    overlap = beta * decay * jnp.einsum("bhtk,bhsk->bhts", k, k)  # only s < t is read below
    missing = beta * (v - from_start * jnp.einsum("bhtk,bhkj->bhtj", k, state))
    u = jax.lax.linalg.triangular_solve(overlap, missing, left_side=True, lower=True, unit_diagonal=True)

    weights = decay * jnp.einsum("bhtk,bhsk->bhts", q, k)
    y = jnp.einsum("bhts,bhsj->bthj", weights, u)
    y = y + jnp.einsum("bhtk,bhkj->bthj", from_start * q, state)

    wanted = slice(None) if every_state else slice(-1, None)
    states = jnp.einsum("bhts,bhsk,bhsj->bthkj", decay[:, :, wanted], k, u)
    return y, states + jnp.einsum("bhto,bhkj->bthkj", from_start[:, :, wanted], state)


def prepare(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    beta: jax.Array,
    scale: float | None,
    state: jax.Array | None,
    lengths: jax.Array | None,
) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """The tokens (scale q, k, v, log_decay, beta) without padding and the state to begin with, float32 or wider."""
    (b, _, h, width), wide = k.shape, np.promote_types(v.dtype, np.float32)
    state = jnp.zeros((b, h, width, v.shape[3]), wide) if state is None else state.astype(wide)
    q, k, v, log_decay, beta = (x.astype(wide) for x in (q, k, v, log_decay, beta))
    q = q * (width**-0.5 if scale is None else scale)
    return zero_padding(lengths, q, k, v, log_decay, beta), state
