"""Int8: both sides of a product in eight bits, with a scale an output, and one a row of x as it comes (W8A8).

Processors multiply bytes several times faster than floats, and read a quarter of the memory, so this is the fast
one. The products are exact; all that is lost is in the rounding of both sides (`ops.int8_matmul`).
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ..ops import encode_ints, encode_ints_ref, int8_matmul
from .grouped import grouped_product

LEAST_ROWS = 2  # a product with a lone row takes ten times as long as one with two (XLA 0.10 on a CPU)


@struct.dataclass
class Int8:
    """codes int8 [out, in] and scales f32 [out], with a leading axis e for e experts; its transpose if `rowwise`.

    rowwise: the weight is [out, in] itself, as an embedding is, whose transpose is the head.
    """

    codes: jax.Array
    scales: jax.Array
    rowwise: bool = struct.field(pytree_node=False, default=False)

    __array_ufunc__ = None

    @staticmethod
    def of(w: np.ndarray, rowwise: bool = False) -> "Int8":
        """The matrix [out, in], or the matrices [e, out, in], with a scale for each output."""
        codes, scales, _ = encode_ints_ref(w, "int8")
        return Int8(jax.device_put(codes), jax.device_put(scales[..., 0]), rowwise)

    @property
    def shape(self) -> tuple[int, int]:
        """(in, out)."""
        rows, columns = self.codes.shape[-2:]
        return (rows, columns) if self.rowwise else (columns, rows)

    @property
    def T(self) -> "Int8":
        """The transpose, sharing the codes."""
        return Int8(self.codes, self.scales, not self.rowwise)

    def __rmatmul__(self, x: jax.Array) -> jax.Array:
        """x [..., in] @ self -> [..., out] in x's dtype; ValueError for the side that has no scale an output."""
        if self.rowwise:
            raise ValueError("Int8: x @ w is asked of an embedding, expected x @ w.T: its scales belong to rows")
        if x.shape[-1] != self.shape[0]:
            raise ValueError(f"Int8: x has {x.shape[-1]} columns, but the weight is {list(self.shape)}")
        flat = x.reshape(-1, x.shape[-1])
        rows = len(flat)
        if rows < LEAST_ROWS:
            flat = jnp.pad(flat, ((0, LEAST_ROWS - rows), (0, 0)))
        codes, scales, _ = encode_ints(flat, "int8")
        y = int8_matmul(codes, self.codes, scales[:, 0], self.scales)[:rows]
        return y.astype(x.dtype).reshape(*x.shape[:-1], -1)

    def grouped(self, x: jax.Array, sizes: jax.Array) -> jax.Array:
        """x [rows, in] sorted by group, sizes i32 [e] -> [rows, out], each group's rows by its own matrix."""
        return grouped_product(x, self, sizes)

    def rows(self, ids: jax.Array) -> jax.Array:
        """ids [...] -> rows of the weight; an id out of range gives NaN."""
        known = (ids >= 0) & (ids < len(self.codes))
        some = self.codes[ids].astype(jnp.float32) * self.scales[ids][..., None]
        return jnp.where(known[..., None], some, jnp.nan)

    def for_rows(self, n: int) -> "Int8":
        """The same: there is one way to store it."""
        return self

    def dense(self) -> jax.Array:
        """The matrix [in, out], or the matrices [e, in, out], in float32."""
        wide = self.codes.astype(jnp.float32) * self.scales[..., None]
        return wide if self.rowwise else wide.swapaxes(-1, -2)
