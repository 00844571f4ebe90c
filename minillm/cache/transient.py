"""No memory at all: a span that attends to itself alone, for training and scoring whole sequences."""

import jax
from flax import struct

from ..ops import naive_attention
from ..span import Span, ancestors


@struct.dataclass
class Transient:
    """The span's own keys and values [b t g k], while its forward lasts."""

    keys: jax.Array
    values: jax.Array

    def attend(self, q: jax.Array, at: Span, **options) -> tuple[jax.Array, jax.Array]:
        """q [b t h k] -> y [b t h k], lse [b t h]; options as in `ops.naive_attention`."""
        pos = at.query_pos
        kin = None if at.parent is None else ancestors(at.parent)
        return naive_attention(
            q, self.keys, self.values, q_pos=pos, k_pos=pos, mask=kin, return_lse=True, **options
        )
