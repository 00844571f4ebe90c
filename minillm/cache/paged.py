"""The paged KV cache (Kwon et al. 2023, arXiv:2309.06180): rows live in pages that any sequence may own.

A sequence's rows need not be neighbours in memory: row j is row j % page_size of page `pages[j // page_size]`,
and the table `pages` travels in the Span, once for all layers. Which page is whose is decided by the caller;
here a table only turns row numbers into places. Entries that no row reaches may be anything.
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
class Paged:
    """keys [p, o, g, k] and values [p, o, g, j]: pages, rows in a page, KV heads, channels."""

    keys: jax.Array
    values: jax.Array

    @staticmethod
    def empty(spec: StateSpec, g: int, k: int, j: int) -> "Paged":
        """A memory in which nothing is written yet, for g heads: keys of k channels, values of j."""
        shape = (spec.n_pages, spec.page_size, g)
        keys, values = (on_device(np.zeros((*shape, width), spec.dtype)) for width in (k, j))
        return Paged(keys, values)

    def append(self, k: jax.Array, v: jax.Array, at: Span) -> "Paged":
        """Write k [b t g k] and v [b t g j] to rows start … start + n - 1; padding is not written."""
        page, row = self._places(at.start[:, None] + jnp.arange(k.shape[1], dtype=jnp.int32), at.valid, at)
        return self._write(page, row, k, v)

    def attend(self, q: jax.Array, at: Span, **options) -> tuple[jax.Array, "Paged"]:
        """q [b t h k] -> y [b t h j] and the memory; window, softcap, scale, sinks as in the ops."""
        return attend_rows(q, self.parts(), at, **options), self

    def parts(self) -> tuple["Paged"]:
        """Where its rows are to be found."""
        return (self,)

    def n_rows(self, at: Span) -> int:
        """Rows of each sequence."""
        return table_of(at).shape[1] * self.keys.shape[1]

    def n_used(self, at: Span) -> jax.Array:
        """As many as the longest sequence has written."""
        return n_written(at, self.n_rows(at))

    def rows(self, at: Span, first, size: int) -> Rows:
        """Rows first … first + size - 1 of the span's sequences, gathered from their pages."""
        row = first + jnp.arange(size, dtype=jnp.int32)
        page, place = table_of(at)[:, row // self.keys.shape[1]], row % self.keys.shape[1]
        return Rows(self.keys[page, place], self.values[page, place], at.row_pos(row), at.row_mask(row))

    def commit(self, at: Span, keep: jax.Array, n_keep: jax.Array) -> "Paged":
        """Keep n_keep [b] tokens, those at indices keep [b m] of the span."""
        if at.parent is None:
            return self
        kept = jnp.arange(keep.shape[1], dtype=jnp.int32) < n_keep[:, None]
        page, row = self._places(at.start[:, None] + keep, kept, at)
        k, v = self.keys[page, row], self.values[page, row]
        page, row = self._places(at.start[:, None] + jnp.arange(keep.shape[1], dtype=jnp.int32), kept, at)
        return self._write(page, row, k, v)

    def _places(self, rows: jax.Array, real: jax.Array, at: Span) -> tuple[jax.Array, jax.Array]:
        """Page and row in it of sequence rows [b t]; a page past the end where not real [b t]."""
        page_size = self.keys.shape[1]
        table = table_of(at)
        entry = jnp.clip(rows // page_size, 0, table.shape[1] - 1)
        page = jnp.take_along_axis(table, entry, axis=1)
        inside = real & (rows < table.shape[1] * page_size)
        return jnp.where(inside, page, self.keys.shape[0]), rows % page_size

    def _write(self, page: jax.Array, row: jax.Array, k: jax.Array, v: jax.Array) -> "Paged":
        """Write k [b t g k] and v [b t g j] to places page and row [b t]; pages past the end are dropped."""
        keys = self.keys.at[page, row].set(k.astype(self.keys.dtype), mode="drop")
        values = self.values.at[page, row].set(v.astype(self.values.dtype), mode="drop")
        return Paged(keys, values)


def table_of(at: Span) -> jax.Array:
    """The span's page table i32 [b p]; ValueError if it has none."""
    if at.pages is None:
        raise ValueError("Paged: the Span has no pages, expected a page table i32 [b, p]")
    return at.pages
