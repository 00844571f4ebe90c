"""Attention as three lines of algebra: all scores, a softmax, a weighted sum (definition in `ref.py`).

The whole t x s score matrix exists in memory, which FlashAttention (`blocked.py`) avoids. Who sees whom, and the
scores themselves, are in `scores.py`, for every form the same.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ..shapes import shaped
from .scores import SHAPES, add_sinks, check, only_tokens, positions, scores, visible


@shaped(SHAPES)
def naive_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    q_pos: jax.Array | None = None,
    k_pos: jax.Array | None = None,
    mask: jax.Array | None = None,
    q_segment: jax.Array | None = None,
    k_segment: jax.Array | None = None,
    sinks: jax.Array | None = None,
    alibi: jax.Array | None = None,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> Any:
    """q [b t h k], k [b s g k], v [b s g j] -> y [b t h j] in q's dtype, and lse [b t h] in float32 or wider.

    Arguments and result as in `attention_ref`. ValueError if h is not a multiple of g, if q_pos is left out with
    t > s, if only one of the segments is given, or if window < 1 or softcap <= 0.
    """
    op = "naive_attention"
    check(op, q.shape[2], k.shape[2], window=window, softcap=softcap, q_segment=q_segment, k_segment=k_segment)
    q_pos, k_pos = positions(op, q, k, q_pos, k_pos)
    seen = visible(q_pos, k_pos, causal=causal, window=window, mask=mask, q_segment=q_segment, k_segment=k_segment)
    score = scores(q, k, q_pos, k_pos, seen, scale=scale, softcap=softcap, alibi=alibi)
    y, lse = add_sinks(*average(score, only_tokens(v, k_pos)), sinks)
    return (y.astype(q.dtype), lse) if return_lse else y.astype(q.dtype)


def average(score: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Softmax of score [b g r t s], then that average of v [b s g j] -> y [b t h j], lse [b t h] in score's dtype.

    Scores that are all -inf give y = 0 and lse = -inf.
    """
    peak = jnp.max(score, axis=-1, keepdims=True, initial=-jnp.inf)
    weights = jnp.exp(score - jnp.where(peak == -jnp.inf, 0, peak))
    total = jnp.sum(weights, axis=-1)  # b g r t
    nonzero = jnp.where(total == 0, 1, total)

    y = jnp.einsum("bgrts,bsgj->bgrtj", weights.astype(v.dtype), v, preferred_element_type=score.dtype)
    y, lse = y / nonzero[..., None], peak[..., 0] + jnp.log(nonzero)
    return by_head(y), by_head(lse)


def by_head(x: jax.Array) -> jax.Array:
    """x [b g r t …] -> [b t h …]."""
    b, g, r, t, *rest = x.shape
    return jnp.moveaxis(x, 3, 1).reshape(b, t, g * r, *rest)
