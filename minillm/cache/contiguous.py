"""The plain KV cache: one block of rows a sequence, token j in row j.

A span's keys and values are written past the committed length, so keeping a prefix of a chain needs no work at
all: the length is not stored here, the next span simply starts there. Keeping one path of a draft tree moves that
path's rows together.

Decoding reads all that is written once a step, so the layout follows the reads: the rows of one KV head lie
together, which makes both products of attention plain batched matrix products without a copy.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ..span import Span
from ..xla import on_device
from .rows import Rows, attend_rows, n_written
from .spec import StateSpec


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

    def attend(self, q: jax.Array, at: Span, **options) -> tuple[jax.Array, "Contiguous"]:
        """q [b t h k] -> y [b t h j] and the memory; window, softcap, scale, sinks as in the ops."""
        return attend_rows(q, self.parts(), at, **options), self

    def parts(self) -> tuple["Contiguous"]:
        """Where its rows are to be found."""
        return (self,)

    def n_rows(self, at: Span) -> int:
        """Rows of each sequence."""
        return self.values.shape[2]

    def n_used(self, at: Span) -> jax.Array:
        """As many as the longest sequence has written."""
        return n_written(at, self.n_rows(at))

    def rows(self, at: Span, first, size: int) -> Rows:
        """Rows first … first + size - 1 of the span's sequences."""
        row = first + jnp.arange(size, dtype=jnp.int32)
        k, v = (rows_of(memory, at, first, size) for memory in (self.keys, self.values))
        return Rows(k, v, at.row_pos(row), at.row_mask(row))

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


def rows_of(memory: jax.Array, at: Span, first, size: int) -> jax.Array:
    """Rows first … first + size - 1 of the span's sequences, [b s g k] from memory [slots, g, s, k].

    Ops want this order; XLA folds the transpose into their matrix products.
    """

    def of_slot(slot: jax.Array) -> jax.Array:
        g, _, k = memory.shape[1:]
        zero, row = jnp.zeros_like(slot), jnp.asarray(first, slot.dtype)
        return jax.lax.dynamic_slice(memory, (slot, zero, row, zero), (1, g, size, k))[0]  # no more than that

    if at.slot is None:
        part = jax.lax.dynamic_slice_in_dim(memory, first, size, axis=2)
    else:
        part = jax.vmap(of_slot)(at.slot)
    return jnp.moveaxis(part, 2, 1)
