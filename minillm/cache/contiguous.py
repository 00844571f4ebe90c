"""The plain KV cache: one block of rows a sequence, token j in row j.

A span's keys and values are written past the committed length, so keeping a prefix of a chain needs no work at
all: the length is not stored here, the next span simply starts there. Keeping one path of a draft tree moves that
path's rows together.

Decoding reads the whole memory once a step, so the layout follows the reads: the rows of one KV head lie
together, which makes both products of attention plain batched matrix products without a copy.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ..ops import naive_attention
from ..span import Span
from ..xla import on_device
from .spec import StateSpec

# What a span may look at: keys [b s g k], values [b s g j], positions i32 [b s], -1 for rows without a token, and
# bool [b t s], who sees which of them (None: the order says it).
Rows = tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]


@struct.dataclass
class Contiguous:
    """keys [slots, g, s, k] and values [slots, g, s, j]."""

    keys: jax.Array
    values: jax.Array

    @staticmethod
    def empty(spec: StateSpec, g: int, k: int, j: int) -> "Contiguous":
        """A memory in which nothing is written yet, for g heads: keys of k channels, values of j."""
        shape = (spec.slots, g, spec.max_len)
        keys, values = (on_device(np.zeros((*shape, width), spec.dtype)) for width in (k, j))
        return Contiguous(keys, values)

    def append(self, k: jax.Array, v: jax.Array, at: Span) -> "Contiguous":
        """Write k [b t g k] and v [b t g j] to rows start … start + n - 1; padding is not written."""
        rows = jnp.where(
            at.valid, at.start[:, None] + jnp.arange(k.shape[1], dtype=jnp.int32), self.values.shape[2]
        )
        return self._write(rows, k, v, at)

    def attend(self, q: jax.Array, at: Span, **options) -> tuple[jax.Array, jax.Array]:
        """q [b t h k] -> y [b t h j], lse [b t h]; options as in `ops.naive_attention`."""
        return attend_rows(q, self.rows(at), at, **options)

    def rows(self, at: Span) -> Rows:
        """All rows of the span's sequences."""
        keys = self.keys if at.slot is None else self.keys[at.slot]
        values = self.values if at.slot is None else self.values[at.slot]
        s = keys.shape[2]
        # Ops want [b, s, g, k]; XLA folds the transpose into their matrix products and moves nothing.
        return jnp.moveaxis(keys, 2, 1), jnp.moveaxis(values, 2, 1), at.row_pos(s), at.row_mask(s)

    def commit(self, at: Span, keep: jax.Array, n_keep: jax.Array) -> "Contiguous":
        """Keep n_keep [b] tokens, those at indices keep [b m] of the span."""
        if at.parent is None:  # a prefix is already where it belongs
            return self
        slot = slots(at)[:, None]
        source = at.start[:, None] + keep
        k, v = self.keys[slot, :, source], self.values[slot, :, source]  # b m g k, b m g j
        kept = jnp.arange(keep.shape[1], dtype=jnp.int32) < n_keep[:, None]
        rows = jnp.where(kept, at.start[:, None] + jnp.arange(keep.shape[1], dtype=jnp.int32), self.values.shape[2])
        return self._write(rows, k, v, at)

    def _write(self, rows: jax.Array, k: jax.Array, v: jax.Array, at: Span) -> "Contiguous":
        """Write k [b t g k] and v [b t g j] to rows [b t]; rows past the end are dropped."""
        slot = slots(at)[:, None]
        keys = self.keys.at[slot, :, rows].set(k.astype(self.keys.dtype), mode="drop")
        values = self.values.at[slot, :, rows].set(v.astype(self.values.dtype), mode="drop")
        return Contiguous(keys, values)


def slots(at: Span) -> jax.Array:
    """i32 [b]: the slot of each row, spelled out."""
    return jnp.arange(at.start.shape[0], dtype=jnp.int32) if at.slot is None else at.slot


def attend_rows(q: jax.Array, rows: Rows, at: Span, **options) -> tuple[jax.Array, jax.Array]:
    """Attention of the span's queries q [b t h k] over rows -> y [b t h j], lse [b t h]."""
    k, v, k_pos, mask = rows
    return naive_attention(
        q,
        k.astype(q.dtype),
        v.astype(q.dtype),
        q_pos=at.query_pos,
        k_pos=k_pos,
        mask=mask,
        return_lse=True,
        **options,
    )
