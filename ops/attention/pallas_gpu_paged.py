"""Decode attention over pages for GPUs, in Pallas on its Triton backend (definition in `paged_ref.py`).

PagedAttention (Kwon et al. 2023, arXiv:2309.06180) and FlashDecoding (`split.py`) in one: a few queries of a
sequence with all of its keys, wherever the page table says that they are.

    grid      tiles of queries (one, in decoding), KV heads, and for each sequence `splits` parts of its keys:
              without them a small batch would leave most of a GPU idle. Their results are merged afterwards
    queries   the r heads that share a KV head, of all t queries, as in `pallas_gpu.py`
    keys      `s_block` tokens at a time, each row fetched from its own page, so that a tile is full whatever the
              pages' size; only tiles with tokens that are seen, which a program works out from the length
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from ..pallas_gpu import chosen_sides, product, read, read_rows, run, side, write, write_rows
from ..shapes import shaped
from .blocked import Running
from .paged import SHAPES, check_table
from .pallas_gpu import finish, fold, nothing_yet, own_rows
from .scores import add_sinks, capped, check, visible
from .split import merge_attention


class Inputs(NamedTuple):
    """What programs read: arrays outside of the kernel, references to them inside."""

    q: Any
    k_pages: Any
    v_pages: Any
    pages: Any
    lengths: Any


@shaped(SHAPES)
def paged_attention_gpu(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    pages: jax.Array,
    lengths: jax.Array,
    *,
    sinks: jax.Array | None = None,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    q_block: int | None = None,
    s_block: int | None = None,
    splits: int = 8,
    interpret: bool = False,
) -> Any:
    """Arguments, result and errors as in `paged_attention`; lse in float32.

    ValueError, too, if `q_block` or `s_block` are not powers of two of at least 16, or `splits` is less than 1.
    `interpret` as in `ops/pallas_gpu.py`.
    """
    op, (b, t, h, width), g = "paged_attention_gpu", q.shape, k_pages.shape[2]
    check(op, h, g, window=window, softcap=softcap)
    q_block, s_block = chosen_sides(op, q.dtype, q_block=q_block, s_block=s_block)
    if splits < 1:
        raise ValueError(f"{op}: splits is {splits}, expected at least 1")
    check_table(op, pages, lengths, k_pages.shape)
    rows = min(q_block, side(t * (h // g)))
    kernel = partial(
        paged_kernel,
        rows=rows,
        s_block=s_block,
        splits=splits,
        causal=causal,
        window=window,
        softcap=softcap,
        scale=width**-0.5 if scale is None else scale,
    )
    ys, lses = run(
        kernel,
        (pl.cdiv(t * (h // g), rows), g, b * splits),
        Inputs(q, k_pages, v_pages, pages, lengths),
        (
            jax.ShapeDtypeStruct((splits, b, t, h, v_pages.shape[3]), jnp.float32),
            jax.ShapeDtypeStruct((splits, b, t, h), jnp.float32),
        ),
        name=op,
        warps=8,
        interpret=interpret,
    )
    y, lse = add_sinks(*merge_attention(ys, lses), sinks)
    return (y.astype(q.dtype), lse) if return_lse else y.astype(q.dtype)


def paged_kernel(
    given: Inputs,
    ys_ref: Any,
    lses_ref: Any,
    *,
    rows: int,
    s_block: int,
    splits: int,
    causal: bool,
    window: int | None,
    softcap: float | None,
    scale: float,
) -> None:
    """A tile of queries over one part of the keys."""
    g, place = pl.program_id(1), pl.program_id(2)
    b, part = jax.lax.div(place, splits), jax.lax.rem(place, splits)
    t, h, real = own_rows(given.q.shape, given.k_pages.shape[2], rows)
    length, (p, o) = given.lengths[b], given.k_pages.shape[:2]
    held = jnp.minimum(length, given.pages.shape[1] * o)  # keys, as far as the table goes
    q_pos = jnp.where(real, length - given.q.shape[1] + t, -1)
    q = read_rows(given.q, (b, t, h), q_pos >= 0)

    def step(i: jax.Array, running: Running) -> Running:
        s = i * s_block + jnp.arange(s_block, dtype=jnp.int32)
        there = s < held
        page = read(given.pages, (b, jax.lax.div(s, o)), there, -1)
        known = (page >= 0) & (page < p)
        other = jnp.where(there & ~known, jnp.nan, 0)[:, None]  # a page that does not exist is nobody else's
        row = page, jax.lax.rem(s, o), g
        k, v = (read_rows(ref, row, known, other) for ref in (given.k_pages, given.v_pages))
        seen = visible(q_pos, jnp.where(there, s, -1), causal=causal, window=window)
        score = capped(product(q, k.T) * scale, softcap)
        return fold(running, jnp.where(seen, score, -jnp.inf), v)

    first, end = seen_tiles(q_pos, held, s_block, causal, window)
    share = pl.cdiv(jnp.maximum(end - first, 0), splits)
    first = first + part * share
    start = nothing_yet(rows, side(given.v_pages.shape[3]))
    y, lse = finish(jax.lax.fori_loop(first, jnp.minimum(first + share, end), step, start))
    write_rows(ys_ref, (part, b, t, h), real, y)
    write(lses_ref, (part, b, t, h), real, lse)


def seen_tiles(
    q_pos: jax.Array, held: jax.Array, s_block: int, causal: bool, window: int | None
) -> tuple[jax.Array, jax.Array]:
    """The first tile of `held` keys that queries at q_pos [m] may see, and the one after the last."""
    most = jnp.max(q_pos)
    first, end = jnp.int32(0), jnp.minimum(held, most + 1) if causal else held
    if window is not None:
        least, reach = jnp.min(jnp.where(q_pos < 0, most, q_pos)), jnp.minimum(window, held)
        first, end = jnp.maximum(least - window + 1, 0), jnp.minimum(end, most + reach)
    return jax.lax.div(first, s_block), pl.cdiv(jnp.maximum(end, 0), s_block)
