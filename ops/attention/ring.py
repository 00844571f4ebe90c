"""Ring attention (Liu et al. 2023, arXiv:2310.01889): a text that is spread over the devices of a mesh axis.

Inside `jax.shard_map` every device holds a piece of the queries, the keys and the values. The queries stay. The
keys and values go round: each device reads those it holds while it sends them to the next one, and after as many
turns as there are devices every query has met every key. What was read so far is a softmax on its way, as in
`blocked.py`; no device ever holds more than two pieces, and a piece's tile of scores.

Positions say who sees whom, so pieces need not be in order. With a causal mask they better are not: of
consecutive pieces the first device's queries see one and the last device's all, while every device waits for the
slowest. Dealt out like cards, all have about as much to see (Striped Attention, Brandon et al. 2023,
arXiv:2311.09431). Hidden tiles are computed here all the same.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ..shapes import shaped
from .blocked import Keys, finish, fold, nothing_yet
from .scores import SHAPES, add_sinks, check, only_tokens, scores, visible


@shaped(SHAPES.replace("mask: b t s", "mask: b t all"))
def ring_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    axis: str,
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
    """A device's t queries over the keys of all devices along `axis`, s on each -> y [b t h j], lse [b t h].

    Arguments, result and errors as in `naive_attention`, each array being this device's piece of it, but for
    sinks and alibi, which are the same everywhere, and mask [b t all]: its columns are the keys of all devices,
    piece after piece. Positions that are left out are those of consecutive pieces.
    """
    op = "ring_attention"
    check(op, q.shape[2], k.shape[2], window=window, softcap=softcap, q_segment=q_segment, k_segment=k_segment)
    devices, me, s = jax.lax.axis_size(axis), jax.lax.axis_index(axis), k.shape[1]
    q_pos, k_pos = piece_positions(op, q, k, q_pos, k_pos, devices, me)
    if mask is not None and mask.shape[2] != devices * s:
        raise ValueError(f"{op}: mask has {mask.shape[2]} columns, expected {devices} devices * s = {s} keys")

    def turn(x: jax.Array) -> jax.Array:
        return jax.lax.ppermute(x, axis, [(i, (i + 1) % devices) for i in range(devices)])

    running, held = nothing_yet(q, k.shape[2], v.shape[3]), Keys(k, v, k_pos, None, k_segment)
    for step in range(devices):
        coming = jax.tree.map(turn, held) if step < devices - 1 else held  # on their way while these are read
        owner = (me - step) % devices
        seen = visible(
            q_pos,
            held.pos,
            causal=causal,
            window=window,
            mask=None if mask is None else jax.lax.dynamic_slice_in_dim(mask, owner * s, s, axis=2),
            q_segment=q_segment,
            k_segment=held.segment,
        )
        score = scores(q, held.k, q_pos, held.pos, seen, scale=scale, softcap=softcap, alibi=alibi)
        running = fold(running, score, only_tokens(held.v, held.pos))
        held = coming
    y, lse = add_sinks(*finish(running), sinks)
    return (y.astype(q.dtype), lse) if return_lse else y.astype(q.dtype)


def piece_positions(
    op: str, q: jax.Array, k: jax.Array, q_pos: jax.Array | None, k_pos: jax.Array | None, devices: int, me: Any
) -> tuple[jax.Array, jax.Array]:
    """q_pos [b t] and k_pos [b s] of device `me`; by default 0 … devices * s - 1, the queries being the last."""
    (b, t), s = q.shape[:2], k.shape[1]
    if q_pos is None and t > s:
        raise ValueError(f"{op}: q has t = {t} > s = {s}; say where the queries stand with q_pos")
    if q_pos is None:
        q_pos = jnp.broadcast_to(devices * (s - t) + me * t + jnp.arange(t, dtype=jnp.int32), (b, t))
    if k_pos is None:
        k_pos = jnp.broadcast_to(me * s + jnp.arange(s, dtype=jnp.int32), (b, s))
    return q_pos, k_pos


@shaped("y: b t h j float, lse: b t h float")
def merge_across(y: jax.Array, lse: jax.Array, axis: str) -> tuple[jax.Array, jax.Array]:
    """`merge_attention` where each device along `axis` has one of the parts; all have the result.

    This is what decoding wants: a few queries, the same on every device, go nowhere, and instead of keys and
    values only results are exchanged.
    """
    peak = jax.lax.pmax(lse, axis)
    weight = jnp.exp(lse - jnp.where(peak == -jnp.inf, 0, peak))
    total, summed = jax.lax.psum((weight, weight[..., None] * y.astype(lse.dtype)), axis)
    nonzero = jnp.where(total == 0, 1, total)
    return (summed / nonzero[..., None]).astype(y.dtype), peak + jnp.log(nonzero)
