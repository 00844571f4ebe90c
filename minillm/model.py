"""Model: embedding, a tuple of blocks, a norm and a head. The one forward of this project."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from .blocks import Block
from .blocks.params import Get, Linear, Norm, Params
from .cache import StateSpec
from .config import Config
from .quant import Dense, Weight
from .span import Span


@struct.dataclass
class Model:
    """A decoder. embed (v, d); blocks; norm; head (d, v), the embedding's transpose where tied.

    positions (learned_positions, d), where positions are learned vectors; embed_scale and softcap as in `Config`.
    """

    embed: Weight
    blocks: tuple[Block, ...]
    norm: Norm
    head: Linear | None
    positions: Weight | None = None
    embed_scale: float = struct.field(pytree_node=False, default=1.0)
    softcap: float | None = struct.field(pytree_node=False, default=None)

    @staticmethod
    def build(config: Config, get: Get) -> "Model":
        """The model a config describes, from parameters that `get` delivers (see `blocks.params`)."""
        c, top = config, Params(get, config)
        embed = Dense(top.array("embed", (c.v, c.d)))
        layers = [[spec.build(Params(get, c, i)) for spec in layer] for i, layer in enumerate(c.layers)]
        return Model(
            embed,
            tuple(block for layer in layers for block in layer),
            top.norm("norm"),
            None if c.tied else top.linear("head", c.d, c.v),
            Dense(top.array("positions", (c.learned_positions, c.d))) if c.learned_positions else None,
            c.embed_scale,
            c.softcap,
        )

    def init_state(self, spec: StateSpec) -> tuple[Any, ...]:
        """Empty memory, one entry a block; keys and values take no more bits than the model computes them in."""
        dtype = jax.tree.leaves(self.norm)[0].dtype
        if not spec.coded and dtype.itemsize < 4:
            spec = replace(spec, dtype=dtype.name)
        return tuple(block.init_state(spec) for block in self.blocks)

    def state_bytes(self, spec: StateSpec) -> int:
        """How large that memory is."""
        state = jax.eval_shape(lambda: self.init_state(spec))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))

    def hidden(self, tokens: jax.Array, state: tuple | None, at: Span) -> tuple[jax.Array, tuple]:
        """tokens i32 [b, t] -> what the head reads [b, t, d], and what the blocks propose to remember."""
        x = self.embed.rows(tokens) * self.embed_scale
        if self.positions is not None:
            x = x + self.positions.rows(at.pos)
        memories = (None,) * len(self.blocks) if state is None else state
        pending = []
        for block, memory in zip(self.blocks, memories, strict=True):
            x, proposed = block(x, memory, at)
            pending.append(proposed)
        return self.norm(x), tuple(pending)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """hidden [..., d] -> [..., v] in float32 or wider."""
        head = self.embed.T if self.head is None else self.head
        logits = (hidden @ head).astype(np.promote_types(hidden.dtype, np.float32))
        return logits if self.softcap is None else self.softcap * jnp.tanh(logits / self.softcap)

    def __call__(self, tokens: jax.Array, state: tuple | None, at: Span) -> tuple[jax.Array, tuple]:
        """tokens i32 [b, t] -> logits [b, t, v] and pending; state None scores whole sequences."""
        hidden, pending = self.hidden(tokens, state, at)
        return self.logits(hidden), pending

    def commit(self, pending: tuple, at: Span, keep: jax.Array, n_keep: jax.Array) -> tuple[Any, ...]:
        """Memory that has seen n_keep i32 [b] of the span's tokens, those at indices keep i32 [b, m].

        Of a chain they must be the first ones, and all of them unless the span was made to `rewind`.
        """
        return tuple(
            block.commit(proposed, at, keep, n_keep) for block, proposed in zip(self.blocks, pending, strict=True)
        )
