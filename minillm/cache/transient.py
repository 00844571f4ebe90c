"""No memory at all: a span that attends to itself alone, for training and scoring whole sequences."""

import jax
from flax import struct

from ..span import Span, ancestors
from .contiguous import Rows, attend_rows


@struct.dataclass
class Transient:
    """The span's own keys [b t g k] and values [b t g j], while its forward lasts."""

    keys: jax.Array
    values: jax.Array

    def attend(self, q: jax.Array, at: Span, **options) -> tuple[jax.Array, jax.Array]:
        """q [b t h k] -> y [b t h j], lse [b t h]; options as in `ops.naive_attention`."""
        return attend_rows(q, self.rows(at), at, **options)

    def rows(self, at: Span) -> Rows:
        """The span's own."""
        return self.keys, self.values, at.query_pos, None if at.parent is None else ancestors(at.parent)
