"""Keys and values in eight bits: a code for each channel, and one scale for each token and KV head.

    int8   integers from -127 to 127; scale = max |x| / 127
    fp8    e4m3fn, four significant bits at any magnitude down to 2^-6 of the scale; scale = max |x| / 448

A token's scale depends on that token alone, so what is remembered of it is the same whoever stands beside it and
however many tokens come at once. That is what lets drafts, batches and pages be combined with it; a scale that
several tokens share needs care (kivi.py).

A row is its k codes, then the four bytes of its scale. To a memory of rows that is a row of k + 4 numbers, so every
layout there is serves, and only writing and reading differ.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ..ops import decode_float, decode_ints, encode_float, encode_ints
from ..ops.formats.integers_ref import CodedInts
from ..ops.formats.rounding import divided, normal
from ..span import Span
from .rows import Rows, attend_rows
from .spec import StateSpec

SCALE = 4  # bytes
PER_LARGEST = np.float32(1 / 448)  # of e4m3fn


@struct.dataclass
class Coded:
    """Coded rows, held by a memory of another kind; format is int8 or fp8."""

    memory: Any
    format: str = struct.field(pytree_node=False)

    @staticmethod
    def empty(layout: Any, spec: StateSpec, g: int, k: int, j: int) -> "Coded":
        """A memory laid out like the class `layout` in which nothing is written yet."""
        return Coded(layout.empty(replace(spec, dtype="int8"), g, k + SCALE, j + SCALE), spec.dtype)

    def append(self, k: jax.Array, v: jax.Array, at: Span) -> "Coded":
        """Write k [b t g k] and v [b t g j] past the committed length."""
        return self._with(self.memory.append(coded(k, self.format), coded(v, self.format), at))

    def attend(self, q: jax.Array, at: Span, **options) -> tuple[jax.Array, "Coded"]:
        """q [b t h k] -> y [b t h j] and the memory; window, softcap, scale, sinks as in the ops."""
        return attend_rows(q, self.parts(), at, **options), self

    def parts(self) -> list["Coded"]:
        """Where its rows are to be found."""
        return [self._with(part) for part in self.memory.parts()]

    def n_rows(self, at: Span) -> int:
        """Rows of each sequence."""
        return self.memory.n_rows(at)

    def n_used(self, at: Span) -> Any:
        """How many of them, the first ones, may hold tokens."""
        return self.memory.n_used(at)

    def rows(self, at: Span, first, size: int) -> Rows:
        """Rows first … first + size - 1 of the span's sequences, in float32."""
        rows = self.memory.rows(at, first, size)
        return rows._replace(k=decoded(rows.k, self.format), v=decoded(rows.v, self.format))

    def commit(self, at: Span, keep: jax.Array, n_keep: jax.Array) -> "Coded":
        """Keep n_keep [b] tokens, those at indices keep [b m] of the span."""
        return self._with(self.memory.commit(at, keep, n_keep))

    def _with(self, memory: Any) -> "Coded":
        return Coded(memory, self.format)


def coded(x: jax.Array, format: str) -> jax.Array:
    """x [... k] -> int8 [... k + 4]: the codes nearest to x / scale, ties to even, then the scale."""
    x = x.astype(jnp.float32)
    if format == "int8":
        codes, scales, _ = encode_ints(x, "int8")
    else:
        scales = normal(jnp.max(jnp.abs(x), axis=-1, keepdims=True) * PER_LARGEST)
        codes = encode_float(divided(x, scales[..., 0]), "e4m3fn", saturate=True)
        codes = jax.lax.bitcast_convert_type(codes, jnp.int8)
    return jnp.concatenate([codes, jax.lax.bitcast_convert_type(scales[..., 0], jnp.int8)], axis=-1)


def decoded(row: jax.Array, format: str) -> jax.Array:
    """int8 [... k + 4] -> float32 [... k]."""
    codes, scales = row[..., :-SCALE], jax.lax.bitcast_convert_type(row[..., -SCALE:], jnp.float32)[..., None]
    return decode_ints(CodedInts(codes, scales)) if format == "int8" else decode_float(codes, "e4m3fn") * scales
