"""Attention as three lines of algebra: all scores, a softmax, a weighted sum (definition in `ref.py`).

The whole t x s score matrix exists in memory, which FlashAttention avoids. A row that
holds no token (k_pos < 0) is taken out by `where`, never by a factor: memory that was never written may hold
anything, and 0 * NaN is NaN.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..shapes import shaped


@shaped("q: b t h k float, k: b s g k float, v: b s g k float, q_pos: b t int, k_pos: b s int, mask: b t s bool")
def naive_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    q_pos: jax.Array | None = None,
    k_pos: jax.Array | None = None,
    mask: jax.Array | None = None,
    causal: bool = True,
    scale: float | None = None,
    return_lse: bool = False,
) -> Any:
    """Arguments and result as in `attention_ref`; y in q's dtype, softmax and lse in float32 or wider.

    ValueError if h is not a multiple of g, or if q_pos is left out with t > s.
    """
    (b, t, h, width), (s, g) = q.shape, k.shape[1:3]
    if h % g:
        raise ValueError(f"naive_attention: q has h = {h} heads, not a multiple of k's g = {g}")
    if q_pos is None and t > s:
        raise ValueError(f"naive_attention: q has t = {t} > s = {s}; say where the queries stand with q_pos")
    r, wide = h // g, np.promote_types(q.dtype, np.float32)
    scale = width**-0.5 if scale is None else scale
    q_pos = jnp.broadcast_to(jnp.arange(s - t, s, dtype=jnp.int32), (b, t)) if q_pos is None else q_pos
    k_pos = jnp.broadcast_to(jnp.arange(s, dtype=jnp.int32), (b, s)) if k_pos is None else k_pos

    real = k_pos >= 0  # b s
    visible = real[:, None, :] & (q_pos >= 0)[:, :, None]  # b t s
    if causal:
        visible &= k_pos[:, None, :] <= q_pos[:, :, None]
    if mask is not None:
        visible &= mask
    visible = visible[:, None, None]  # b 1 1 t s, for every g and r

    k, v = (jnp.where(real[:, :, None, None], x, 0) for x in (k, v))
    q = q.reshape(b, t, g, r, width)
    scores = jnp.einsum("btgrk,bsgk->bgrts", q, k, preferred_element_type=wide)
    scores = jnp.where(visible, scores * scale, -jnp.inf)
    peak = jnp.max(scores, axis=-1, keepdims=True, initial=-jnp.inf)
    weights = jnp.exp(scores - jnp.where(peak == -jnp.inf, 0, peak))
    total = jnp.sum(weights, axis=-1)  # b g r t

    y = jnp.einsum("bgrts,bsgk->bgrtk", weights.astype(v.dtype), v, preferred_element_type=wide)
    y = y / jnp.where(total == 0, 1, total)[..., None]
    y = jnp.moveaxis(y, 3, 1).reshape(b, t, h, width).astype(q.dtype)
    if not return_lse:
        return y
    lse = jnp.where(total == 0, -jnp.inf, peak[..., 0] + jnp.log(jnp.where(total == 0, 1, total)))
    return y, jnp.moveaxis(lse, 3, 1).reshape(b, t, h)
