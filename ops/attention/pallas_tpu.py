"""FlashAttention for TPUs (Dao 2023, arXiv:2307.08691), in Pallas (definition in `ref.py`).

The softmax on the way is that of `blocked.py`, with queries in tiles as well. Peak, total and y of a tile of
queries stay in VMEM while its keys come by, a tile in each step; only y, and lse if asked for, go back to memory.

    grid        b, g, tiles of queries, tiles of keys. A step sees
    q           [b g r t k]   block r, t_block, k   the r heads of a group as rows of one matrix: a key that was
                                                    read serves all of them
    k, v        [b g s k]     block s_block, k      heads come first, as tiles are cut from the last two axes
    q_ids       [b t 2]       block t_block, 2      position and segment of the rows of scores, as columns
    k_ids       [b 2 s]       block 2, s_block      the same of the columns of scores, as rows
    mask        [b t s]       block t_block, s_block
    sinks       [g r 1 1]     block r, 1, 1         so is alibi
    y           [b g r t j]   block r, t_block, j

Most tiles of a causal matrix or a window are seen by nobody. Which ones is *prefetched*: put into scalar memory
before the first step, where index maps can read it. In place of a tile without use they name the one before it,
which is there and not copied again, and the step does nothing (block masks: Dong et al. 2024, arXiv:2412.05496).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..pallas_tpu import LANES, SUBLANES, product
from ..shapes import shaped
from ..tiles import fill_up, round_up
from .scores import SHAPES, capped, check, only_tokens, positions
from .tiles import visible_tiles


class Inputs(NamedTuple):
    """What a step reads: arrays outside of the kernel, references to blocks inside. None: not given."""

    q: Any
    k: Any
    v: Any
    q_ids: Any
    k_ids: Any
    mask: Any
    sinks: Any
    alibi: Any


class Running(NamedTuple):
    """Scratch memory with a softmax on the way: peak and total [… n 1], y [… n j] not yet divided by the total."""

    peak: Any
    total: Any
    y: Any


@shaped(SHAPES)
def flash_attention_tpu(
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
    t_block: int = 128,
    s_block: int = 512,
    interpret: bool = False,
) -> Any:
    """Arguments, result and errors as in `naive_attention`; lse in float32.

    ValueError, too, if `t_block` or `s_block`, the sides of tiles, are less than 1, or if a TPU has no such tiles
    (see `ops/pallas_tpu.py`, there for `interpret`, too).
    """
    op = "flash_attention_tpu"
    check(op, q.shape[2], k.shape[2], window=window, softcap=softcap, q_segment=q_segment, k_segment=k_segment)
    if min(t_block, s_block) < 1:
        raise ValueError(f"{op}: t_block is {t_block} and s_block is {s_block}, expected at least 1")
    q_pos, k_pos = positions(op, q, k, q_pos, k_pos)
    (b, t, h, width), (s, g, _), j = q.shape, k.shape[1:], v.shape[3]
    r, t_block, s_block = h // g, min(t_block, round_up(t, SUBLANES)), min(s_block, round_up(s, LANES))

    tiles = visible_tiles(q_pos, k_pos, t_block, s_block, causal=causal, window=window)
    given = Inputs(
        q=fill_up(q, 1, t_block).reshape(b, -1, g, r, width).transpose(0, 2, 3, 1, 4),
        k=fill_up(k, 1, s_block).swapaxes(1, 2),
        v=fill_up(only_tokens(v, k_pos), 1, s_block).swapaxes(1, 2),  # a weight of 0 times NaN would be NaN
        q_ids=identities(q_pos, q_segment, t_block),
        k_ids=identities(k_pos, k_segment, s_block).swapaxes(1, 2),
        mask=None if mask is None else fill_up(fill_up(mask, 1, t_block), 2, s_block).astype(jnp.int8),
        sinks=None if sinks is None else sinks.astype(jnp.float32).reshape(g, r, 1, 1),
        alibi=None if alibi is None else alibi.astype(jnp.float32).reshape(g, r, 1, 1),
    )

    def tile_of_queries(width: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, r, t_block, width), lambda b, g, m, n, there: (b, g, 0, m, 0))

    def tile_of_keys(width: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, s_block, width), lambda b, g, m, n, there: (b, g, there[b, m, n], 0))

    per_head = pl.BlockSpec((None, r, 1, 1), lambda b, g, m, n, there: (g, 0, 0, 0))
    specs = Inputs(
        q=tile_of_queries(width),
        k=tile_of_keys(width),
        v=tile_of_keys(j),
        q_ids=pl.BlockSpec((None, t_block, 2), lambda b, g, m, n, there: (b, m, 0)),
        k_ids=pl.BlockSpec((None, 2, s_block), lambda b, g, m, n, there: (b, 0, there[b, m, n])),
        mask=pl.BlockSpec((None, t_block, s_block), lambda b, g, m, n, there: (b, m, there[b, m, n])),
        sinks=per_head,
        alibi=per_head,
    )
    rows = given.q.shape[:4]
    y, lse = pl.pallas_call(
        partial(
            flash_kernel,
            causal=causal,
            window=window,
            softcap=softcap,
            scale=width**-0.5 if scale is None else scale,
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(b, g, *tiles.shape[1:]),
            in_specs=[Inputs(*(None if x is None else spec for x, spec in zip(given, specs, strict=True)))],
            # In memory a column takes the room of 128: lse is written only if it is asked for.
            out_specs=(tile_of_queries(j), tile_of_queries(1) if return_lse else None),
            scratch_shapes=[Running(*(pltpu.VMEM((r, t_block, n), jnp.float32) for n in (1, 1, j)))],
        ),
        out_shape=(
            jax.ShapeDtypeStruct((*rows, j), q.dtype),
            jax.ShapeDtypeStruct((*rows, 1), jnp.float32) if return_lse else None,
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",) * 3 + ("arbitrary",)),
        cost_estimate=pl.CostEstimate(  # as if all tiles were visited: how many are is not known before
            flops=2 * b * h * t * s * (width + j),
            transcendentals=b * h * t * s,
            bytes_accessed=2 * q.nbytes + tiles.shape[1] * (k.nbytes + v.nbytes),
        ),
        name=op,
        interpret=interpret,
    )(tiles_there(tiles), given)
    y = by_head(y)[:, :t]
    return (y, by_head(lse)[:, :t, :, 0]) if return_lse else y


def flash_kernel(
    there: Any,
    given: Inputs,
    y: Any,
    lse: Any,
    running: Running,
    *,
    causal: bool,
    window: int | None,
    softcap: float | None,
    scale: float,
) -> None:
    """One step: a tile of queries takes in a tile of keys, if it may see any of them."""
    b, m, n = pl.program_id(0), pl.program_id(2), pl.program_id(3)

    @pl.when(n == 0)
    def _():
        begin(running, None if given.sinks is None else given.sinks[...])

    @pl.when(there[b, m, n] == n)
    def _():
        q_pos, k_pos = given.q_ids[:, :1], given.k_ids[:1]  # t 1, 1 s
        seen = visible(q_pos, k_pos, causal=causal, window=window)
        seen &= given.q_ids[:, 1:] == given.k_ids[1:]
        if given.mask is not None:
            seen &= given.mask[...].astype(jnp.int32) != 0
        score = capped(product("rtk,sk->rts", given.q[...], given.k[...]) * scale, softcap)
        if given.alibi is not None:
            score -= given.alibi[...] * jnp.abs(q_pos - k_pos).astype(jnp.float32)[None]
        weights = fold(running, jnp.where(seen[None], score, -jnp.inf))
        running.y[...] += product("rts,sj->rtj", weights.astype(given.v.dtype), given.v[...])

    @pl.when(n == pl.num_programs(3) - 1)
    def _():
        end(running, y, lse)


def identities(pos: jax.Array, segment: jax.Array | None, block: int) -> jax.Array:
    """Positions [b s] and segments [b s] as one array [b s 2], filled up to whole tiles with what is no token."""
    segment = jnp.zeros_like(pos) if segment is None else segment
    return fill_up(jnp.stack([pos.astype(jnp.int32), segment.astype(jnp.int32)], axis=2), 1, block, -1)


def tiles_there(visible: jax.Array) -> jax.Array:
    """Int32 [b m n]: the tile of keys that is in VMEM in step n of tile m of queries, where visible [b m n].

    It is n itself if it is to be visited, else the last one that was; before the first visit it is the first.
    """
    n = jnp.arange(visible.shape[2], dtype=jnp.int32)
    last = jax.lax.cummax(jnp.where(visible, n, -1), axis=2)
    return jnp.where(last < 0, jnp.argmax(visible, axis=2).astype(jnp.int32)[:, :, None], last)


def by_head(x: jax.Array) -> jax.Array:
    """x [b g r t j] -> [b t h j]."""
    b, g, r, t, j = x.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(b, t, g * r, j)


def visible(q_pos: jax.Array, k_pos: jax.Array, *, causal: bool, window: int | None) -> jax.Array:
    """Bool [t s]: does the query at q_pos [t 1] see the key at k_pos [1 s]? As in `scores.py`, for one tile."""
    seen = (k_pos >= 0) & (q_pos >= 0)
    if causal:
        seen &= k_pos <= q_pos
    if window is not None:
        seen &= jnp.abs(q_pos - k_pos) < window
    return seen


def begin(running: Running, sinks: jax.Array | None = None) -> None:
    """Before the first key. A sink is a key without a value before all others."""
    running.peak[...] = jnp.broadcast_to(jnp.float32(-jnp.inf) if sinks is None else sinks, running.peak.shape)
    running.total[...] = jnp.full(running.total.shape, 0 if sinks is None else 1, jnp.float32)
    running.y[...] = jnp.zeros(running.y.shape, jnp.float32)


def fold(running: Running, score: jax.Array) -> jax.Array:
    """Take in scores [… n s] -> the keys' weights; their values, so weighted, are to be added to y."""
    before = running.peak[...]
    peak = jnp.maximum(before, jnp.max(score, axis=-1, keepdims=True))
    base = jnp.where(peak == -jnp.inf, 0, peak)  # nothing seen so far: -inf - -inf would be NaN
    weights, shrink = jnp.exp(score - base), jnp.exp(before - base)
    running.peak[...] = peak
    running.total[...] = running.total[...] * shrink + jnp.sum(weights, axis=-1, keepdims=True)
    running.y[...] *= shrink
    return weights


def end(running: Running, y: Any, lse: Any) -> None:
    """Write y, and lse if there is room for it; 0 and -inf where nothing was seen."""
    nonzero = jnp.where(running.total[...] == 0, 1, running.total[...])
    y[...] = (running.y[...] / nonzero).astype(y.dtype)
    if lse is not None:
        lse[...] = running.peak[...] + jnp.log(nonzero)
