"""Scaled: a weight whose inputs are multiplied by a factor each before they meet it.

    x W  =  (x diag(r)) (diag(1 / r) W)

The second matrix is the one in few bits: a factor below 1 makes the weights of its input larger, so that rounding
takes less of them (AWQ), or makes the input itself smaller (SmoothQuant). Both are usually folded into whatever
comes before the matrix, the weight of a norm or another matrix; done here it fits any architecture.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from .grouped import grouped_product


@struct.dataclass
class Scaled:
    """diag(factors) @ weight, factors f32 [in] or [e, in]; if `transposed` weight @ diag(factors), f32 [out]."""

    weight: Any
    factors: jax.Array
    transposed: bool = struct.field(pytree_node=False, default=False)

    __array_ufunc__ = None

    @property
    def shape(self) -> tuple[int, int]:
        """(in, out)."""
        return self.weight.shape

    @property
    def T(self) -> "Scaled":
        """The transpose, sharing everything."""
        return Scaled(self.weight.T, self.factors, not self.transposed)

    def __rmatmul__(self, x: jax.Array) -> jax.Array:
        """x [..., in] @ self -> [..., out] in x's dtype; factors are multiplied in float32."""
        wide = x.astype(jnp.float32)
        y = (wide @ self.weight) * self.factors if self.transposed else (wide * self.factors) @ self.weight
        return y.astype(x.dtype)

    def grouped(self, x: jax.Array, sizes: jax.Array) -> jax.Array:
        """x [rows, in] sorted by group, sizes i32 [e] -> [rows, out], each group's rows by its own matrix."""
        return grouped_product(x, self, sizes)

    def rows(self, ids: jax.Array) -> jax.Array:
        """ids [...] -> [..., out]; an id out of range gives NaN."""
        some = self.weight.rows(ids)
        return some * (self.factors if self.transposed else self.factors[ids][..., None])

    def dense(self) -> jax.Array:
        """The matrix [in, out], or the matrices [e, in, out], in float32."""
        return self.weight.dense() * jnp.expand_dims(self.factors, -2 if self.transposed else -1)
