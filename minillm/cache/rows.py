"""How attention reads a memory of rows: a block at a time, as FlashAttention does (`ops/attention/blocked.py`).

Read at once, a long memory becomes temporaries as large as itself, written and read again past the caches, beside a
score for each query and row. A block's worth of both stays in a cache, and blocks that no sequence has reached yet
are never read. The blocks' results are merged by their log-sum-exp.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from ..ops import merge_attention, naive_attention
from ..ops.attention.scores import add_sinks
from ..span import Span

BLOCK = 1 << 20  # numbers: of a block's keys, and of its scores (4 MB each in float32)
FEWEST = 256  # rows a block, however wide they are: less is all overhead
AT_ONCE = 1024  # rows that are not worth cutting up


class Rows(NamedTuple):
    """Some rows of a memory: k [b s g k], v [b s g j], pos i32 [b s], negative where there is no token, and bool
    mask [b t s], which of them the span's tokens see (None: their order says it).
    """

    k: jax.Array
    v: jax.Array
    pos: jax.Array
    mask: jax.Array | None


class Memory(Protocol):
    """A memory whose rows can be read."""

    def n_rows(self, at: Span) -> int:
        """Rows it has for each of the span's sequences."""
        ...

    def n_used(self, at: Span) -> Any:
        """How many of them, the first ones, may hold tokens."""
        ...

    def rows(self, at: Span, first: Any, size: int) -> Rows:
        """Rows first … first + size - 1 of the span's sequences."""
        ...


def attend_rows(q: jax.Array, parts: Sequence[Memory], at: Span, sinks=None, **options) -> jax.Array:
    """Attention of q [b t h k] over a memory's parts together -> y [b t h j].

    The options are window, softcap, scale and others of `ops.naive_attention` that do not come by the row.
    """
    y, lse = merged([attend_part(q, part, at, **options) for part in parts])
    return add_sinks(y, lse, sinks)[0].astype(q.dtype)


def merged(results: Sequence[tuple[jax.Array, jax.Array]]) -> tuple[jax.Array, jax.Array]:
    """The y and lse of several attentions of the same queries as one."""
    if len(results) == 1:
        return results[0]
    ys, lses = (jnp.stack(one) for one in zip(*results, strict=True))
    return merge_attention(ys.astype(lses.dtype), lses)


def attend_part(q: jax.Array, memory: Memory, at: Span, **options) -> tuple[jax.Array, jax.Array]:
    """Attention of q [b t h k] over one memory -> y [b t h j], lse [b t h]."""

    def attend_block(rows: Rows) -> tuple[jax.Array, jax.Array]:
        k, v = rows.k.astype(q.dtype), rows.v.astype(q.dtype)
        places: dict[str, Any] = {"q_pos": at.query_pos, "k_pos": rows.pos, "mask": rows.mask}
        return naive_attention(q, k, v, **places, return_lse=True, **options)

    row_size = jax.eval_shape(lambda: memory.rows(at, 0, 1).k).size
    return by_blocks(attend_block, memory, at, row_size, q.shape[2])


def n_written(at: Span, length: int) -> jax.Array:
    """i32 []: how many rows the longest of the span's sequences has written, where row follows row."""
    return jnp.minimum(jnp.max(at.start + at.n), length)


def by_blocks(
    attend: Callable[[Rows], tuple[jax.Array, jax.Array]], memory: Memory, at: Span, row_size: int, h: int
) -> tuple[jax.Array, jax.Array]:
    """Fold `attend` of each block into one y [b t h j] and lse [b t h].

    A block has as many rows as keep both its keys (`row_size` numbers a row, of all sequences together) and the
    scores of h heads within BLOCK, but FEWEST at least. y is in float32 or wider where there are several blocks.
    """
    length, (b, t) = memory.n_rows(at), at.pos.shape
    block = max(FEWEST, BLOCK // max(row_size, b * t * h))
    if length <= max(block, AT_ONCE):
        return attend(memory.rows(at, 0, length))

    def fold(i: jax.Array, running: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        first = jnp.minimum(i * block, length - block)
        rows = memory.rows(at, first, block)
        again = first + jnp.arange(block, dtype=jnp.int32) < i * block  # the last block reaches back
        part = attend(rows._replace(pos=jnp.where(again, -1, rows.pos)))
        ys, lses = (
            jnp.stack([one.astype(part[1].dtype) for one in pair]) for pair in zip(running, part, strict=True)
        )
        return merge_attention(ys, lses)

    y, lse = jax.eval_shape(lambda: attend(memory.rows(at, 0, block)))
    nothing = jnp.zeros(y.shape, lse.dtype), jnp.full(lse.shape, -jnp.inf, lse.dtype)
    return jax.lax.fori_loop(0, -(-memory.n_used(at) // block), fold, nothing)
