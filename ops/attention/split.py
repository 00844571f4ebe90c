"""FlashDecoding (Dao et al. 2023, https://crfm.stanford.edu/2023/10/12/flashdecoding.html): keys in parallel parts.

One query a sequence leaves most of a wide device idle, so the keys are split and each part attends on its own.
A part's (y, lse) is all that the others need to know:

    y = sum_c exp(lse_c - lse) y_c,    lse = log sum_c exp(lse_c)
"""

from typing import Any

import jax
import jax.numpy as jnp

from ..shapes import shaped
from .blocked import Keys, cut
from .naive import average
from .scores import SHAPES, add_sinks, check, only_tokens, positions, scores, visible


@shaped(SHAPES)
def split_attention(
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
    splits: int = 4,
) -> Any:
    """Arguments, result and errors as in `naive_attention`; the keys in `splits` >= 1 parts, some of them empty."""
    op = "split_attention"
    check(op, q.shape[2], k.shape[2], window=window, softcap=softcap, q_segment=q_segment, k_segment=k_segment)
    if splits < 1:
        raise ValueError(f"{op}: splits is {splits}, expected at least 1")
    q_pos, k_pos = positions(op, q, k, q_pos, k_pos)

    def attend_part(keys: Keys) -> tuple[jax.Array, jax.Array]:
        seen = visible(
            q_pos,
            keys.pos,
            causal=causal,
            window=window,
            mask=keys.mask,
            q_segment=q_segment,
            k_segment=keys.segment,
        )
        score = scores(q, keys.k, q_pos, keys.pos, seen, scale=scale, softcap=softcap, alibi=alibi)
        return average(score, only_tokens(keys.v, keys.pos))

    size = max(1, -(-k.shape[1] // splits))
    parts = jax.vmap(attend_part)(cut(Keys(k, v, k_pos, mask, k_segment), size))
    y, lse = add_sinks(*merge_attention(*parts), sinks)  # once, not in every part
    return (y.astype(q.dtype), lse) if return_lse else y.astype(q.dtype)


@shaped("ys: c b t h j float, lses: c b t h float")
def merge_attention(ys: jax.Array, lses: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Attention over c disjoint sets of keys, ys [c b t h j] and lses [c b t h] -> y [b t h j], lse [b t h].

    A part that saw nothing (lse = -inf) weighs nothing. Where there are sinks they may be in one part only.
    """
    peak = jnp.max(lses, axis=0, initial=-jnp.inf)
    weights = jnp.exp(lses - jnp.where(peak == -jnp.inf, 0, peak))
    total = jnp.sum(weights, axis=0)
    nonzero = jnp.where(total == 0, 1, total)
    y = jnp.sum(weights[..., None] * ys.astype(lses.dtype), axis=0) / nonzero[..., None]
    return y.astype(ys.dtype), peak + jnp.log(nonzero)
