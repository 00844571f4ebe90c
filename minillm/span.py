"""Span: which tokens of which sequences one forward sees.

A forward over `t` tokens of `b` sequences is the same program whether it is a prefill, a decode step, the
verification of a draft or a scoring pass. What differs is this record, made once a forward and shared by every
block: where each sequence stands, how many of its tokens are real, and, for a draft tree, who follows whom.

A draft is a cheap guess of several tokens ahead. One forward checks them all, and only those that hold are
committed; in a draft tree several guesses share their beginning.
"""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Span:
    """Tokens `start … start + n - 1` of b sequences, each remembered in a slot of the memory.

    slot    i32 [b], the place of each sequence in the memory; None: sequence i has place i, nothing to gather
    start   i32 [b]      tokens already committed, so the first new token's index in the sequence
    n       i32 [b]      how many of the t tokens are real; the rest is padding (0 is legal)
    pos     i32 [b, t]   absolute positions: start + depth in the draft tree
    parent  i32 [b, t]   index of the token each token follows, -1 for the last committed one; None: a chain
    pages   i32 [b, p]   which page holds rows page_size * i …, for paged memories; one table for all layers
    rewind  bool, static: recurrent blocks keep per-step states, so that any prefix or path can be committed
    """

    slot: jax.Array | None
    start: jax.Array
    n: jax.Array
    pos: jax.Array
    parent: jax.Array | None = None
    pages: jax.Array | None = None
    rewind: bool = struct.field(pytree_node=False, default=False)

    @staticmethod
    def chain(start, n, t: int, slot=None, pages=None, rewind: bool = False) -> "Span":
        """t tokens a row, each following the one before; start and n are i32 [b]."""
        pos = start[:, None] + jnp.arange(t, dtype=jnp.int32)
        return Span(slot, start, n, pos, None, pages, rewind)

    @staticmethod
    def tree(start, n, parent, slot=None, pages=None) -> "Span":
        """A draft tree: parent i32 [b, t] points to earlier tokens of the span, or is -1."""
        depth = jnp.sum(ancestors(parent), axis=-1, dtype=jnp.int32) - 1
        return Span(slot, start, n, start[:, None] + depth, parent, pages, rewind=True)

    @property
    def valid(self) -> jax.Array:
        """bool [b, t]: which tokens are real."""
        return jnp.arange(self.pos.shape[1], dtype=jnp.int32) < self.n[:, None]

    @property
    def query_pos(self) -> jax.Array:
        """i32 [b, t]: the positions, -1 for padding, as the attention ops want them."""
        return jnp.where(self.valid, self.pos, -1)

    def row_pos(self, row: jax.Array) -> jax.Array:
        """i32 [b, s]: the positions held by rows i32 [s] of a memory that stores token j in row j; -1 if none."""
        row = row[None]
        if self.parent is None:
            return jnp.where(row < (self.start + self.n)[:, None], row, -1)
        new = row - self.start[:, None]  # index into the span
        drafted = jnp.take_along_axis(self.query_pos, jnp.clip(new, 0, self.pos.shape[1] - 1), axis=1)
        return jnp.where(new < 0, row, jnp.where(new < self.pos.shape[1], drafted, -1))

    def row_mask(self, row: jax.Array) -> jax.Array | None:
        """bool [b, t, s]: rows i32 [s] that are committed or a token's ancestors; None for a chain, by order."""
        if self.parent is None:
            return None
        t = self.pos.shape[1]
        new = row[None] - self.start[:, None]  # b s
        kin = jnp.take_along_axis(ancestors(self.parent), jnp.clip(new, 0, t - 1)[:, None, :], axis=2)
        return (new < 0)[:, None, :] | ((new < t)[:, None, :] & kin)


def ancestors(parent: jax.Array) -> jax.Array:
    """bool [b, t, t]: whether token j is token i or one it follows. Parents come before their children."""
    b, t = parent.shape
    line = jnp.zeros((b, t, t), bool)
    for i in range(t):
        above = jnp.take_along_axis(line, jnp.maximum(parent[:, i], 0)[:, None, None], axis=1)[:, 0]
        above = jnp.where(parent[:, i, None] >= 0, above, False)
        line = line.at[:, i].set(above.at[:, i].set(True))
    return line
