"""Model: embedding, a tuple of blocks, a norm and a head. The one forward of this project."""

from typing import Any

import jax
import numpy as np
from flax import struct

from .blocks import Block
from .cache import StateSpec
from .ops import rms_norm
from .quant import Weight
from .span import Span


@struct.dataclass
class Model:
    """A decoder. embed (v, d); blocks; norm [d]; head (d, v), the embedding's transpose where tied."""

    embed: Weight
    blocks: tuple[Block, ...]
    norm: jax.Array
    head: Weight | None
    eps: float = struct.field(pytree_node=False)

    def init_state(self, spec: StateSpec) -> tuple[Any, ...]:
        """Empty memory, one entry a block."""
        return tuple(block.init_state(spec) for block in self.blocks)

    def hidden(self, tokens: jax.Array, state: tuple | None, at: Span) -> tuple[jax.Array, tuple]:
        """tokens i32 [b, t] -> what the head reads [b, t, d], and what the blocks propose to remember."""
        x = self.embed.rows(tokens)
        memories = (None,) * len(self.blocks) if state is None else state
        pending = []
        for block, memory in zip(self.blocks, memories, strict=True):
            x, proposed = block(x, memory, at)
            pending.append(proposed)
        return rms_norm(x, self.norm, self.eps), tuple(pending)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """hidden [..., d] -> [..., v] in float32 or wider."""
        head = self.embed.T if self.head is None else self.head
        return (hidden @ head).astype(np.promote_types(hidden.dtype, np.float32))

    def __call__(self, tokens: jax.Array, state: tuple | None, at: Span) -> tuple[jax.Array, tuple]:
        """tokens i32 [b, t] -> logits [b, t, v] and pending; state None scores whole sequences."""
        hidden, pending = self.hidden(tokens, state, at)
        return self.logits(hidden), pending

    def commit(self, pending: tuple, at: Span, keep: jax.Array, n_keep: jax.Array) -> tuple[Any, ...]:
        """Memory that has seen n_keep i32 [b] of the span's tokens, those at indices keep i32 [b, m]."""
        return tuple(
            block.commit(proposed, at, keep, n_keep) for block, proposed in zip(self.blocks, pending, strict=True)
        )
