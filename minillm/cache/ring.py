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

from ..ops import merge_attention
from ..ops.attention.scores import add_sinks
from ..span import Span, ancestors
from ..xla import on_device
from .contiguous import Rows, attend_rows, slots
from .spec import StateSpec


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

    def attend(self, q: jax.Array, at: Span, sinks=None, **options) -> tuple[jax.Array, jax.Array]:
        """q [b t h k] -> y [b t h j], lse [b t h]; options as in `ops.naive_attention`."""
        assert self.span is not None, "append comes before attend"
        row, last = jnp.arange(self.keys.shape[2], dtype=jnp.int32)[None], at.start[:, None] - 1
        held = last - (last - row) % self.keys.shape[2]  # the newest committed token that lives in this row
        kin = None if at.parent is None else ancestors(at.parent)
        memory = (self.keys, self.values) if at.slot is None else (self.keys[at.slot], self.values[at.slot])
        old = jnp.moveaxis(memory[0], 2, 1), jnp.moveaxis(memory[1], 2, 1)  # b s g k, b s g j
        both: tuple[Rows, Rows] = (*old, held, None), (*self.span, at.query_pos, kin)
        parts = [attend_rows(q, rows, at, **options) for rows in both]
        ys, lses = (jnp.stack(part) for part in zip(*parts, strict=True))
        y, lse = add_sinks(*merge_attention(ys.astype(lses.dtype), lses), sinks)
        return y.astype(q.dtype), lse

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
