"""No memory at all: a span that attends to itself alone, as in training and scoring, or beside a ring."""

import jax
from flax import struct

from ..span import Span, ancestors
from .rows import Rows, attend_rows


@struct.dataclass
class Transient:
    """The span's own keys [b t g k] and values [b t g j], while its forward lasts."""

    keys: jax.Array
    values: jax.Array

    def attend(self, q: jax.Array, at: Span, **options) -> tuple[jax.Array, "Transient"]:
        """q [b t h k] -> y [b t h j] and the memory; window, softcap, scale, sinks as in the ops."""
        return attend_rows(q, self.parts(), at, **options), self

    def parts(self) -> tuple["Transient"]:
        """Where its rows are to be found."""
        return (self,)

    def n_rows(self, at: Span) -> int:
        """As many as the span has tokens."""
        return self.keys.shape[1]

    def n_used(self, at: Span) -> int:
        """All: a number known before compilation, so that gradients can go back through the blocks."""
        return self.n_rows(at)

    def rows(self, at: Span, first, size: int) -> Rows:
        """Rows first … first + size - 1 of the span's own."""
        mask = None if at.parent is None else ancestors(at.parent)
        k, v, pos = (
            jax.lax.dynamic_slice_in_dim(x, first, size, 1) for x in (self.keys, self.values, at.query_pos)
        )
        return Rows(k, v, pos, None if mask is None else jax.lax.dynamic_slice_in_dim(mask, first, size, 2))
