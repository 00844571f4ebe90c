"""Keys and values in eight bits: a code from -127 to 127 a channel, and one scale for each token and KV head.

A token's scale depends on that token alone, so what is remembered of it is the same whoever stands beside it and
however many tokens come at once. That is what lets drafts, batches and pages be combined with it; a scale that
several tokens share (KIVI's keys, arXiv:2402.02750) would change as they come.

A row is its k codes, then the four bytes of its scale. To a memory of rows that is a row of k + 4 numbers, so every
layout there is serves, and only writing and reading differ.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ..span import Span
from .rows import Rows, attend_rows
from .spec import StateSpec

SCALE = 4  # bytes


@struct.dataclass
class Int8:
    """Coded rows, held by a memory of another kind."""

    memory: Any

    @staticmethod
    def empty(layout: Any, spec: StateSpec, g: int, k: int, j: int) -> "Int8":
        """A memory laid out like the class `layout` in which nothing is written yet."""
        return Int8(layout.empty(spec, g, k + SCALE, j + SCALE))

    def append(self, k: jax.Array, v: jax.Array, at: Span) -> "Int8":
        """Write k [b t g k] and v [b t g j] past the committed length."""
        return Int8(self.memory.append(coded(k), coded(v), at))

    def attend(self, q: jax.Array, at: Span, **options) -> tuple[jax.Array, "Int8"]:
        """q [b t h k] -> y [b t h j] and the memory; window, softcap, scale, sinks as in the ops."""
        return attend_rows(q, [Int8(part) for part in self.memory.parts()], at, **options), self

    def n_rows(self, at: Span) -> int:
        """Rows of each sequence."""
        return self.memory.n_rows(at)

    def n_used(self, at: Span) -> Any:
        """How many of them, the first ones, may hold tokens."""
        return self.memory.n_used(at)

    def rows(self, at: Span, first, size: int) -> Rows:
        """Rows first … first + size - 1 of the span's sequences, in float32."""
        rows = self.memory.rows(at, first, size)
        return rows._replace(k=decoded(rows.k), v=decoded(rows.v))

    def commit(self, at: Span, keep: jax.Array, n_keep: jax.Array) -> "Int8":
        """Keep n_keep [b] tokens, those at indices keep [b m] of the span."""
        return Int8(self.memory.commit(at, keep, n_keep))


def coded(x: jax.Array) -> jax.Array:
    """x [... k] -> int8 [... k + 4]: round(x / scale), ties to even, with scale = max |x| / 127; then the scale."""
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=-1, keepdims=True) * np.float32(1 / 127)  # XLA would do so, but not always
    codes = jnp.round(x / jnp.where(scale > 0, scale, 1)).astype(jnp.int8)
    return jnp.concatenate([codes, jax.lax.bitcast_convert_type(scale[..., 0], jnp.int8)], axis=-1)


def decoded(row: jax.Array) -> jax.Array:
    """int8 [... k + 4] -> float32 [... k]."""
    scale = jax.lax.bitcast_convert_type(row[..., -SCALE:], jnp.float32)
    return row[..., :-SCALE].astype(jnp.float32) * scale[..., None]
