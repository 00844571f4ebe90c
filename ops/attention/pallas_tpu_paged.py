"""Decode attention over pages for TPUs, in Pallas (Kwon et al. 2023, arXiv:2309.06180; see `paged_ref.py`).

The table of pages and the lengths are *prefetched*: put into scalar memory before the first step, where index maps
look up which page a step is to have in VMEM. Pages are never gathered anywhere else.

    grid        b, and along a sequence `together` pages at a time. A step sees
    q           [b g m k]     block g, m, k         rows m: the t queries of each of the r heads of a group
    k_pages     [p o g k]     block o, g, k         one page for all heads, as it lies in memory; the array is
                                                    given `together` times, each time with the next page
    y           [b g m j]     block g, m, j         written at a sequence's end

A page is few rows, and a step costs time whatever it does: so it takes several pages. Past the end of a sequence,
and before its window, index maps stay at the nearest page that has something in it, which is not copied again.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..pallas_tpu import places, product
from ..shapes import shaped
from ..tiles import fill_up
from .paged import SHAPES, check_table, query_positions
from .pallas_tpu import Running, begin, by_head, end, fold, visible
from .scores import capped, check


class Inputs(NamedTuple):
    """What a step reads: arrays outside of the kernel, references to blocks inside; `together` of pages."""

    q: Any
    k_pages: tuple[Any, ...]
    v_pages: tuple[Any, ...]
    q_pos: Any
    sinks: Any


@shaped(SHAPES)
def paged_attention_tpu(
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
    together: int = 8,
    interpret: bool = False,
) -> Any:
    """Arguments, result and errors as in `paged_attention`; lse in float32, `together` >= 1 pages in one step.

    A sequence with a token in a page that does not exist is all NaN. `interpret` as in `ops/pallas_tpu.py`.
    """
    op, (b, t, h, width), (p, o, g, _), j = "paged_attention_tpu", q.shape, k_pages.shape, v_pages.shape[3]
    check(op, h, g, window=window, softcap=softcap)
    check_table(op, pages, lengths, k_pages.shape)
    if together < 1:
        raise ValueError(f"{op}: together is {together}, expected at least 1")
    r, together = h // g, min(together, pages.shape[1])
    q_pos = jnp.tile(query_positions(lengths.astype(jnp.int32), t), r)
    given = Inputs(
        q=q.reshape(b, t, g, r, width).transpose(0, 2, 3, 1, 4).reshape(b, g, r * t, width),
        k_pages=(k_pages,) * together,
        v_pages=(v_pages,) * together,
        q_pos=q_pos[:, :, None],
        sinks=None if sinks is None else jnp.repeat(sinks.astype(jnp.float32), t).reshape(g, r * t, 1),
    )

    def rows_of_queries(width: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, g, r * t, width), lambda b, n, table, seen: (b, 0, 0, 0))

    def next_pages(width: int) -> tuple[pl.BlockSpec, ...]:
        return tuple(
            pl.BlockSpec((None, o, g, width), lambda b, n, table, seen, i=i: (table[b, n * together + i], 0, 0, 0))
            for i in range(together)
        )

    specs = Inputs(
        q=rows_of_queries(width),
        k_pages=next_pages(width),
        v_pages=next_pages(j),
        q_pos=pl.BlockSpec((None, r * t, 1), lambda b, n, table, seen: (b, 0, 0)),
        sinks=None if sinks is None else pl.BlockSpec((g, r * t, 1), lambda b, n, table, seen: (0, 0, 0)),
    )
    seen = rows_seen(lengths, t, window)
    table = pages_there(pages, seen, p, o, together)
    y, lse = pl.pallas_call(
        partial(
            paged_kernel,
            causal=causal,
            window=window,
            softcap=softcap,
            scale=width**-0.5 if scale is None else scale,
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(b, table.shape[1] // together),
            in_specs=[specs],
            out_specs=(rows_of_queries(j), rows_of_queries(1)),
            scratch_shapes=[Running(*(pltpu.VMEM((g, r * t, n), jnp.float32) for n in (1, 1, j)))],
        ),
        out_shape=(
            jax.ShapeDtypeStruct((b, g, r * t, j), q.dtype),
            jax.ShapeDtypeStruct((b, g, r * t, 1), jnp.float32),
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(  # as if every sequence filled its pages
            flops=2 * b * h * t * pages.shape[1] * o * (width + j),
            transcendentals=b * h * t * pages.shape[1] * o,
            bytes_accessed=2 * q.nbytes + pages.size * (k_pages.nbytes + v_pages.nbytes) // p,
        ),
        name=op,
        interpret=interpret,
    )(table, seen, given)
    lost = jnp.any(has_tokens(pages, lengths, o) & ((pages < 0) | (pages >= p)), axis=1)
    y, lse = (by_head(jnp.where(lost[:, None, None, None], jnp.nan, x).reshape(b, g, r, t, -1)) for x in (y, lse))
    return (y, lse[..., 0]) if return_lse else y


def paged_kernel(
    table: Any,
    seen: Any,
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
    """One step: the queries of a sequence take in the tokens of some pages, if they see any of them."""
    b, n = pl.program_id(0), pl.program_id(1)
    rows = len(given.k_pages) * given.k_pages[0].shape[0]

    @pl.when(n == 0)
    def _():
        begin(running, None if given.sinks is None else given.sinks[...])

    @pl.when((n * rows < seen[b, 1]) & ((n + 1) * rows > seen[b, 0]))
    def _():
        k, v = (jnp.concatenate([page[...] for page in one], axis=0) for one in (given.k_pages, given.v_pages))
        across, down = (n * rows + places(shape, axis) for axis, shape in ((1, (1, rows)), (0, (rows, 1))))
        k_pos = jnp.where(across < seen[b, 1], across, -1)
        score = capped(product("gmk,sgk->gms", given.q[...], k) * scale, softcap)
        can_see = visible(given.q_pos[...], k_pos, causal=causal, window=window)
        weights = fold(running, jnp.where(can_see[None], score, -jnp.inf))
        real = (down >= seen[b, 0]) & (down < seen[b, 1])
        v = jnp.where(real[:, :, None], v, 0)  # a weight of 0 times NaN would be NaN
        running.y[...] += product("gms,sgj->gmj", weights.astype(v.dtype), v)

    @pl.when(n == pl.num_programs(1) - 1)
    def _():
        end(running, y, lse)


def rows_seen(lengths: jax.Array, t: int, window: int | None) -> jax.Array:
    """Int32 [b 2]: of the rows of each sequence, the first that one of its last t tokens sees, and their number."""
    first = jnp.zeros_like(lengths) if window is None else jnp.maximum(jnp.maximum(lengths - t, 0) - window + 1, 0)
    return jnp.stack([first, lengths], axis=1).astype(jnp.int32)


def pages_there(pages: jax.Array, seen: jax.Array, p: int, o: int, together: int) -> jax.Array:
    """Int32 [b n]: which page is in VMEM in place of each entry of the table [b m], in steps of so many pages.

    The same one where it is seen, else the nearest that is. One of the p pages in any case.
    """
    entries = fill_up(jnp.arange(pages.shape[1]), 0, together, pages.shape[1])
    first, last = seen[:, :1] // o, jnp.maximum(-(-seen[:, 1:] // o) - 1, 0)
    nearest = jnp.clip(entries[None], first, last)
    return jnp.clip(jnp.take_along_axis(pages, nearest, axis=1), 0, p - 1).astype(jnp.int32)


def has_tokens(pages: jax.Array, lengths: jax.Array, o: int) -> jax.Array:
    """Bool [b m]: the entries of a table with tokens in their pages."""
    return jnp.arange(pages.shape[1], dtype=lengths.dtype) * o < lengths[:, None]
