"""Coded: a matrix kept in few bits, and decoded to float32 whenever it is multiplied.

It takes little memory and shows exactly what a format does to a model. It is not fast: the decoded matrix goes
through memory at every product.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from .dense import Dense
from .grouped import grouped_product
from .storage import Storage


@struct.dataclass
class Coded:
    """parts, as `storage` keeps a matrix [rows, columns], with a leading axis e for e experts.

    As in `Dense`, the weight is [in, out] = [rows, columns], or its transpose if `transposed`.
    """

    parts: tuple[jax.Array, ...]
    storage: Storage = struct.field(pytree_node=False)
    columns: int = struct.field(pytree_node=False)
    transposed: bool = struct.field(pytree_node=False, default=False)

    __array_ufunc__ = None

    @staticmethod
    def of(w: np.ndarray, storage: Storage, transposed: bool) -> "Coded":
        """The matrix [rows, columns], or matrices [e, rows, columns], in a storage; ValueError if it cannot be."""
        stack = [storage.encode(one) for one in w.reshape(-1, *w.shape[-2:])]
        parts = [np.stack(part) if w.ndim > 2 else part[0] for part in zip(*stack, strict=True)]
        return Coded(tuple(jax.device_put(part) for part in parts), storage, w.shape[-1], transposed)

    @property
    def shape(self) -> tuple[int, int]:
        """(in, out)."""
        rows = self.parts[0].shape[-2]
        return (self.columns, rows) if self.transposed else (rows, self.columns)

    @property
    def T(self) -> "Coded":
        """The transpose, sharing the parts."""
        return Coded(self.parts, self.storage, self.columns, not self.transposed)

    def __rmatmul__(self, x: jax.Array) -> jax.Array:
        """x [..., in] @ self -> [..., out] in x's dtype, summed in float32."""
        return (x.astype(jnp.float32) @ self.decoded()).astype(x.dtype)

    def grouped(self, x: jax.Array, sizes: jax.Array) -> jax.Array:
        """x [rows, in] sorted by group, sizes i32 [e] -> [rows, out], each group's rows by its own matrix."""
        return grouped_product(x, self, sizes)

    def rows(self, ids: jax.Array) -> jax.Array:
        """ids [...] -> [..., out]; an id out of range gives NaN."""
        flat = ids.reshape(-1)
        some = Coded(tuple(part[flat] for part in self.parts), self.storage, self.columns).dense()
        known = (flat >= 0) & (flat < self.shape[0])
        return jnp.where(known[:, None], some, jnp.nan).reshape(*ids.shape, -1)

    def decoded(self) -> Dense:
        """The matrix, or the matrices, as plain float32."""
        decode: Any = self.storage.decode
        for _ in self.parts[0].shape[:-2]:
            decode = jax.vmap(decode)
        return Dense(decode(self.parts), self.transposed)

    def dense(self) -> jax.Array:
        """The matrix [in, out], or the matrices [e, in, out], in float32."""
        return self.decoded().dense()
