"""FlashAttention for GPUs (Dao 2023, arXiv:2307.08691), in Pallas on its Triton backend (definition in `ref.py`).

A program owns a tile of queries and walks over tiles of keys. Scores exist one tile at a time, in registers; so
does the softmax on the way, by the algebra of `blocked.py`. Only y and lse are written to memory.

    grid      tiles of queries, KV heads, sequences: programs that need not know of each other
    queries   `q_block` rows. Row m is query m // r in head m % r of the r heads that share a KV head: a key that
              was read serves all of them, and a few queries already fill the 16 rows that tensor cores want
    keys      `s_block` rows. Which tiles of keys a tile of queries may see is worked out beforehand from their
              least and largest positions, so that what a causal mask or a window hides is not even visited

A row without a token has a negative position. It is masked in every read: memory never written may hold anything.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from ..pallas_gpu import chosen_sides, product, read, read_rows, run, side, write, write_rows
from ..shapes import shaped
from .blocked import Running
from .scores import SHAPES, capped, check, positions, visible
from .tiles import visible_tiles


class Inputs(NamedTuple):
    """What programs read: arrays outside of the kernel, references to them inside. None: not given."""

    q: Any
    k: Any
    v: Any
    q_pos: Any
    k_pos: Any
    tiles: Any  # b m 2: the first tile of keys to visit, and the one after the last
    mask: Any
    q_segment: Any
    k_segment: Any
    sinks: Any
    alibi: Any


@shaped(SHAPES)
def flash_attention_gpu(
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
    q_block: int | None = None,
    s_block: int | None = None,
    interpret: bool = False,
) -> Any:
    """Arguments, result and errors as in `naive_attention`; lse in float32.

    ValueError, too, if `q_block` or `s_block`, the sides of tiles, are not powers of two of at least 16.
    `interpret` as in `ops/pallas_gpu.py`.
    """
    op, r = "flash_attention_gpu", q.shape[2] // k.shape[2]
    check(op, q.shape[2], k.shape[2], window=window, softcap=softcap, q_segment=q_segment, k_segment=k_segment)
    q_block, s_block = chosen_sides(op, q.dtype, q_block=q_block, s_block=s_block)
    q_pos, k_pos = (x.astype(jnp.int32) for x in positions(op, q, k, q_pos, k_pos))
    rows = min(q_block, side(q.shape[1] * r))
    tiles = visited_tiles(jnp.repeat(q_pos, r, axis=1), k_pos, rows, s_block, causal, window)
    kernel = partial(
        flash_kernel,
        rows=rows,
        s_block=s_block,
        causal=causal,
        window=window,
        softcap=softcap,
        scale=q.shape[3] ** -0.5 if scale is None else scale,
    )
    y, lse = run(
        kernel,
        (tiles.shape[1], k.shape[2], q.shape[0]),
        Inputs(q, k, v, q_pos, k_pos, tiles, mask, q_segment, k_segment, sinks, alibi),
        (jax.ShapeDtypeStruct((*q.shape[:3], v.shape[3]), q.dtype), jax.ShapeDtypeStruct(q.shape[:3], jnp.float32)),
        name=op,
        warps=8,  # with four, 256 channels are too many for the registers of an A100, ptxas says
        interpret=interpret,
    )
    return (y, lse) if return_lse else y


def visited_tiles(
    q_pos: jax.Array, k_pos: jax.Array, rows: int, s_block: int, causal: bool, window: int | None
) -> jax.Array:
    """Tiles of keys [b m 2], from the first to before the second, that each tile of queries [b t r] must visit."""
    useful = visible_tiles(q_pos, k_pos, rows, s_block, causal=causal, window=window)
    first, left = jnp.argmax(useful, axis=2), jnp.argmax(useful[:, :, ::-1], axis=2)
    end = jnp.where(jnp.any(useful, axis=2), useful.shape[2] - left, 0)
    return jnp.stack([first, end], axis=2).astype(jnp.int32)


def flash_kernel(
    given: Inputs,
    y_ref: Any,
    lse_ref: Any,
    *,
    rows: int,
    s_block: int,
    causal: bool,
    window: int | None,
    softcap: float | None,
    scale: float,
) -> None:
    """A tile of queries: read it, fold in the keys it may see, write what came out."""
    g, b = pl.program_id(1), pl.program_id(2)
    t, h, real = own_rows(given.q.shape, given.k.shape[2], rows)
    q_pos = read(given.q_pos, (b, t), real, -1)
    q = read_rows(given.q, (b, t, h), q_pos >= 0)
    slope = None if given.alibi is None else read(given.alibi, (h,), real).astype(jnp.float32)
    q_segment = None if given.q_segment is None else read(given.q_segment, (b, t), real)

    def step(i: jax.Array, running: Running) -> Running:
        s = i * s_block + jnp.arange(s_block, dtype=jnp.int32)
        there = s < given.k.shape[1]
        k_pos = read(given.k_pos, (b, s), there, -1)
        k = read_rows(given.k, (b, s, g), k_pos >= 0)
        v = read_rows(given.v, (b, s, g), k_pos >= 0)
        seen = visible(q_pos, k_pos, causal=causal, window=window)
        if given.mask is not None:
            seen &= read(given.mask, (b, t[:, None], s[None]), real[:, None] & there[None], False)
        if q_segment is not None:
            seen &= q_segment[:, None] == read(given.k_segment, (b, s), there)[None]
        score = capped(product(q, k.T) * scale, softcap)
        if slope is not None:
            score -= slope[:, None] * jnp.abs(q_pos[:, None] - k_pos[None]).astype(jnp.float32)
        return fold(running, jnp.where(seen, score, -jnp.inf), v)

    sinks = None if given.sinks is None else read(given.sinks, (h,), real)
    start = nothing_yet(rows, side(given.v.shape[3]), sinks)
    tile = b, pl.program_id(0)
    running = jax.lax.fori_loop(given.tiles[(*tile, 0)], given.tiles[(*tile, 1)], step, start)
    y, lse = finish(running)
    write_rows(y_ref, (b, t, h), real, y)
    write(lse_ref, (b, t, h), real, lse)


def own_rows(shape: tuple[int, ...], g: int, rows: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Query time and head of each row of this program's tile, and whether q, of `shape` [b t h k], has that row."""
    r = shape[2] // g
    m = pl.program_id(0) * rows + jnp.arange(rows, dtype=jnp.int32)
    return jax.lax.div(m, jnp.int32(r)), pl.program_id(1) * r + jax.lax.rem(m, jnp.int32(r)), m < shape[1] * r


def nothing_yet(m: int, j: int, sinks: jax.Array | None = None) -> Running:
    """Before the first key: peak and total [m], y [m j]. A sink is a key without a value before all others."""
    peak = jnp.full((m,), -jnp.inf, jnp.float32) if sinks is None else sinks.astype(jnp.float32)
    return Running(peak, jnp.full((m,), 0.0 if sinks is None else 1.0, jnp.float32), jnp.zeros((m, j), jnp.float32))


def fold(running: Running, score: jax.Array, v: jax.Array) -> Running:
    """Take in a tile of keys: their score [m n] and values v [n j]."""
    peak = jnp.maximum(running.peak, jnp.max(score, axis=1))
    base = jnp.where(peak == -jnp.inf, 0, peak)  # nothing seen so far: -inf - -inf would be NaN
    weights = jnp.exp(score - base[:, None])
    shrink = jnp.exp(running.peak - base)
    y = product(weights.astype(v.dtype), v)
    return Running(peak, running.total * shrink + jnp.sum(weights, axis=1), running.y * shrink[:, None] + y)


def finish(running: Running) -> tuple[jax.Array, jax.Array]:
    """-> y [m j], lse [m]; 0 and -inf where nothing was seen."""
    nonzero = jnp.where(running.total == 0, 1, running.total)
    return running.y / nonzero[:, None], running.peak + jnp.log(nonzero)
