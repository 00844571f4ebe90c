"""Attention over keys and values in pages (Kwon et al. 2023, arXiv:2309.06180; definition in `paged_ref.py`).

A table says which page holds tokens i*o … i*o + o - 1 of a sequence, so sequences grow without moving and may
share pages. `gathered_paged_attention` copies every page of the table into one row of memory, as naive as it is
plain; `paged_attention` folds in one page at a time, as FlashAttention does, and stops after the longest sequence.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..shapes import shaped
from .blocked import Running, finish, fold, nothing_yet
from .naive import naive_attention
from .scores import add_sinks, check, only_tokens, scores, visible

SHAPES = (
    "q: b t h k float, k_pages: p o g k float, v_pages: p o g j float, pages: b m int, lengths: b int, "
    "sinks: h float"
)


@shaped(SHAPES)
def gathered_paged_attention(
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
) -> Any:
    """Arguments, result and errors as in `paged_attention`; needs memory for m pages a sequence, used or not."""
    op, (b, m), o = "gathered_paged_attention", pages.shape, k_pages.shape[1]
    check(op, q.shape[2], k_pages.shape[2], window=window, softcap=softcap)
    check_table(op, pages, lengths, k_pages.shape)
    return naive_attention(
        q,
        take_pages(k_pages, pages).reshape(b, m * o, *k_pages.shape[2:]),
        take_pages(v_pages, pages).reshape(b, m * o, *v_pages.shape[2:]),
        q_pos=query_positions(lengths, q.shape[1]),
        k_pos=row_positions(lengths, jnp.arange(m * o, dtype=lengths.dtype)),
        sinks=sinks,
        causal=causal,
        window=window,
        softcap=softcap,
        scale=scale,
        return_lse=return_lse,
    )


@shaped(SHAPES)
def paged_attention(
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
) -> Any:
    """q [b t h k], k_pages [p o g k], v_pages [p o g j], pages [b m], lengths [b] -> y [b t h j] in q's dtype.

    And lse [b t h] in float32 or wider on request. ValueError if h is not a multiple of g, window < 1,
    softcap <= 0, and, if their values are known before compilation, if a length exceeds the table or a page that
    holds a token is not in 0 … p-1. Under jit they are not known: such a page then reads as NaN.
    """
    op, o = "paged_attention", k_pages.shape[1]
    check(op, q.shape[2], k_pages.shape[2], window=window, softcap=softcap)
    check_table(op, pages, lengths, k_pages.shape)
    q_pos = query_positions(lengths, q.shape[1])

    def fold_page(i: jax.Array, running: Running) -> Running:
        page = jnp.asarray(pages)[:, i]
        k_pos = row_positions(lengths, i * o + jnp.arange(o, dtype=lengths.dtype))
        k, v = take_pages(k_pages, page), take_pages(v_pages, page)
        seen = visible(q_pos, k_pos, causal=causal, window=window)
        score = scores(q, k, q_pos, k_pos, seen, scale=scale, softcap=softcap)
        return fold(running, score, only_tokens(v, k_pos))

    used = jnp.minimum((jnp.max(lengths) + o - 1) // o, pages.shape[1])
    start = nothing_yet(q, k_pages.shape[2], v_pages.shape[3])
    running = jax.lax.fori_loop(0, used, fold_page, start)
    y, lse = add_sinks(*finish(running), sinks)
    return (y.astype(q.dtype), lse) if return_lse else y.astype(q.dtype)


def query_positions(lengths: jax.Array, t: int) -> jax.Array:
    """Positions [b t] of queries that are the last t of lengths [b] tokens; negative for padding."""
    return lengths[:, None] - t + jnp.arange(t, dtype=lengths.dtype)


def row_positions(lengths: jax.Array, rows: jax.Array) -> jax.Array:
    """Positions [b s] of rows [s] of sequences with lengths [b] tokens: their own number, or -1 past the end."""
    return jnp.where(rows < lengths[:, None], rows, -1)


def take_pages(x: jax.Array, pages: jax.Array) -> jax.Array:
    """Pages [b …] of x [p o g k] -> [b … o g k]; a page that does not exist is NaN, never somebody else's."""
    return jnp.asarray(x).at[pages].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


def check_table(op: str, pages: jax.Array, lengths: jax.Array, shape: tuple[int, ...]) -> None:
    """ValueError for a length or a needed page [b m] that pages of `shape` [p o g k] cannot serve, if known yet."""
    if isinstance(pages, Tracer) or isinstance(lengths, Tracer):
        return
    table, ends, (p, o) = np.asarray(pages), np.asarray(lengths), shape[:2]
    rows = table.shape[1] * o
    for b in np.flatnonzero((ends < 0) | (ends > rows))[:1]:
        raise ValueError(f"{op}: lengths[{b}] is {ends[b]}, expected 0 … {rows}, as many as {rows // o} pages hold")
    needed = np.arange(table.shape[1]) * o < ends[:, None]
    for b, i in np.argwhere(needed & ((table < 0) | (table >= p)))[:1]:
        raise ValueError(f"{op}: pages[{b}, {i}] is {table[b, i]} and holds tokens, expected 0 … {p - 1}")
