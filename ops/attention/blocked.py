"""FlashAttention (Dao et al. 2022, arXiv:2205.14135, algorithm 1): the softmax of keys that come in blocks.

A softmax needs the largest score and the sum of all weights, but not before the end. Over the keys so far keep

    peak = max score,   total = sum exp(score - peak),   y = sum exp(score - peak) v

and when a new block raises the peak, scale what was summed before by exp(old peak - new peak). Only a t x block
tile of scores exists at a time. A kernel tiles the queries, too; rows of scores do not know of each other, so
that changes nothing here. Every block is visited, even where a causal mask or a window hides all of it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..shapes import shaped
from .naive import by_head
from .scores import SHAPES, add_sinks, check, only_tokens, positions, scores, visible


@shaped(SHAPES)
def blocked_attention(
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
    block: int = 64,
) -> Any:
    """Arguments, result and errors as in `naive_attention`; `block` >= 1 keys at a time, the last ones fewer."""
    op = "blocked_attention"
    check(op, q.shape[2], k.shape[2], window=window, softcap=softcap, q_segment=q_segment, k_segment=k_segment)
    if block < 1:
        raise ValueError(f"{op}: block is {block}, expected at least 1")
    q_pos, k_pos = positions(op, q, k, q_pos, k_pos)

    def fold_block(running: Running, keys: Keys) -> tuple[Running, None]:
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
        return fold(running, score, only_tokens(keys.v, keys.pos)), None

    start = nothing_yet(q, k.shape[2], v.shape[3])
    running, _ = jax.lax.scan(fold_block, start, cut(Keys(k, v, k_pos, mask, k_segment), block))
    y, lse = add_sinks(*finish(running), sinks)
    return (y.astype(q.dtype), lse) if return_lse else y.astype(q.dtype)


class Running(NamedTuple):
    """A softmax average on the way: peak and total [b g r t], y [b g r t j] not yet divided by the total."""

    peak: jax.Array
    total: jax.Array
    y: jax.Array


def nothing_yet(q: jax.Array, g: int, j: int) -> Running:
    """Before the first key: q [b t h k] will read g KV heads, whose values have j channels."""
    b, t, h, _ = q.shape
    wide = np.promote_types(q.dtype, np.float32)
    total = jnp.zeros((b, g, h // g, t), wide)
    return Running(jnp.full_like(total, -jnp.inf), total, jnp.zeros((*total.shape, j), wide))


def fold(running: Running, score: jax.Array, v: jax.Array) -> Running:
    """Take in more keys: their score [b g r t s] and values v [b s g j]."""
    peak = jnp.maximum(running.peak, jnp.max(score, axis=-1))
    base = jnp.where(peak == -jnp.inf, 0, peak)  # nothing seen so far: -inf - -inf would be NaN
    weights = jnp.exp(score - base[..., None])
    shrink = jnp.exp(running.peak - base)
    y = jnp.einsum("bgrts,bsgj->bgrtj", weights.astype(v.dtype), v, preferred_element_type=score.dtype)
    total = running.total * shrink + jnp.sum(weights, axis=-1)
    return Running(peak, total, running.y * shrink[..., None] + y)


def finish(running: Running) -> tuple[jax.Array, jax.Array]:
    """-> y [b t h j], lse [b t h]; 0 and -inf where nothing was seen."""
    nonzero = jnp.where(running.total == 0, 1, running.total)
    return by_head(running.y / nonzero[..., None]), by_head(running.peak + jnp.log(nonzero))


class Keys(NamedTuple):
    """All that comes by the key: k [b s g k], v [b s g j], pos [b s], mask [b t s] and segment [b s] or None."""

    k: jax.Array
    v: jax.Array
    pos: jax.Array
    mask: jax.Array | None
    segment: jax.Array | None


def cut(keys: Keys, block: int) -> Keys:
    """Blocks of keys along a new first axis; the last one is filled up with rows that hold no token."""

    def cut_one(x: jax.Array, axis: int, fill: int = 0) -> jax.Array:
        n = -(-x.shape[axis] // block)
        ends = [(0, 0)] * x.ndim
        ends[axis] = (0, n * block - x.shape[axis])
        x = jnp.pad(x, ends, constant_values=fill)
        return jnp.moveaxis(x.reshape(*x.shape[:axis], n, block, *x.shape[axis + 1 :]), axis, 0)

    k, v, pos, mask, segment = keys
    return Keys(
        k=cut_one(k, 1),
        v=cut_one(v, 1),
        pos=cut_one(pos, 1, fill=-1),
        mask=None if mask is None else cut_one(mask, 2),
        segment=None if segment is None else cut_one(segment, 1),
    )
