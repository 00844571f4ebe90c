"""A ring of rows for attention that looks back a fixed window: token j lives in row j modulo the rows.

Memory does not grow with the text. The span's own keys stay outside the ring until it is known which of them are
kept: a draft that is rejected must not have overwritten what it pushed out. So a query attends twice, to the ring
and to the span, and the two results are merged by their log-sum-exp (`ops.merge_attention`). That also lets
a prompt's span be longer than the window.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ..span import Span
from ..xla import on_device
from .contiguous import rows_of, slots
from .rows import Rows, attend_rows, n_written
from .spec import StateSpec
from .transient import Transient


@struct.dataclass
class Ring:
    """keys [slots, g, rows, k], values [slots, g, rows, j] of committed tokens; `span`: k and v of proposed."""

    keys: jax.Array
    values: jax.Array
    span: tuple[jax.Array, jax.Array] | None = None

    @staticmethod
    def empty(spec: StateSpec, g: int, k: int, j: int) -> "Ring":
        """A memory of the last spec.max_len tokens in which nothing is written yet."""
        shape = (spec.slots, g, spec.max_len)
        keys, values = (on_device(np.zeros((*shape, width), spec.dtype)) for width in (k, j))
        return Ring(keys, values)

    def append(self, k: jax.Array, v: jax.Array, at: Span) -> "Ring":
        """Propose k [b t g k] and v [b t g j], rounded as they will be remembered."""
        return Ring(self.keys, self.values, (k.astype(self.keys.dtype), v.astype(self.values.dtype)))

    def attend(self, q: jax.Array, at: Span, **options) -> tuple[jax.Array, "Ring"]:
        """q [b t h k] -> y [b t h j] and the memory; window, softcap, scale, sinks as in the ops."""
        return attend_rows(q, self.parts(), at, **options), self

    def parts(self) -> tuple["Ring", Transient]:
        """Where its rows are to be found: the ring, and the span."""
        assert self.span is not None, "append comes before attend"
        return self, Transient(*self.span)

    def n_rows(self, at: Span) -> int:
        """Rows of each sequence."""
        return self.values.shape[2]

    def n_used(self, at: Span) -> jax.Array:
        """All, once a sequence has gone around."""
        return n_written(at, self.n_rows(at))

    def rows(self, at: Span, first, size: int) -> Rows:
        """Rows first … first + size - 1 of the span's sequences, as they are before the span."""
        row, last = first + jnp.arange(size, dtype=jnp.int32), at.start[:, None] - 1
        held = last - (last - row) % self.n_rows(at)  # the newest committed token that lives in this row
        return Rows(rows_of(self.keys, at, first, size), rows_of(self.values, at, first, size), held, None)

    def commit(self, at: Span, keep: jax.Array, n_keep: jax.Array) -> "Ring":
        """Write n_keep [b] tokens, those at indices keep [b m] of the span, over the oldest ones."""
        assert self.span is not None, "append comes before commit"
        b, t, _, _ = self.span[0].shape
        if at.parent is None:
            keep = jnp.broadcast_to(jnp.arange(t, dtype=jnp.int32), (b, t))
        index, rows = jnp.arange(keep.shape[1], dtype=jnp.int32), self.keys.shape[2]
        last = (index < n_keep[:, None]) & (index >= n_keep[:, None] - rows)  # of more than a ringful the newest
        row = jnp.where(last, (at.start[:, None] + index) % rows, rows)
        slot = slots(at)[:, None]

        def written(memory: jax.Array, x: jax.Array) -> jax.Array:
            kept = jnp.take_along_axis(x, jnp.clip(keep, 0, t - 1)[:, :, None, None], axis=1)
            return memory.at[slot, :, row].set(kept, mode="drop")

        return Ring(written(self.keys, self.span[0]), written(self.values, self.span[1]))
