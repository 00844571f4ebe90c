"""Dense: a matrix stored as plain floating-point numbers."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct


@struct.dataclass
class Dense:
    """`array` is [in, out], or [out, in] when `transposed`.

    Checkpoints store [out, in]: `Dense(array).T` is a linear layer that needs no copy at load, and on a CPU
    that order is also the faster one for a single row, as in decoding.
    """

    array: jax.Array
    transposed: bool = struct.field(pytree_node=False, default=False)

    __array_ufunc__ = None  # NumPy arrays on the left defer to __rmatmul__

    @property
    def shape(self) -> tuple[int, int]:
        """(in, out)."""
        rows, columns = self.array.shape
        return (columns, rows) if self.transposed else (rows, columns)

    @property
    def T(self) -> "Dense":
        """The transpose, sharing the array."""
        return Dense(self.array, not self.transposed)

    def __rmatmul__(self, x: jax.Array) -> jax.Array:
        """x [..., in] @ self -> [..., out] in x's dtype, summed in float32 or wider."""
        if x.shape[-1] != self.shape[0]:
            raise ValueError(f"Dense: x has {x.shape[-1]} columns, but the weight is {list(self.shape)}")
        contracted = 1 if self.transposed else 0
        y = jax.lax.dot_general(
            x.reshape(-1, x.shape[-1]),
            self.array.astype(x.dtype),
            (((1,), (contracted,)), ((), ())),
            preferred_element_type=np.promote_types(x.dtype, np.float32),
        )
        return y.astype(x.dtype).reshape(*x.shape[:-1], self.shape[1])

    def rows(self, ids: jax.Array) -> jax.Array:
        """ids [...] -> [..., out]; an id out of range gives NaN."""
        ids = jnp.where(ids < 0, self.shape[0], ids)  # a negative id would count from the end
        return jnp.take(self.dense(), ids, axis=0, mode="fill")

    def dense(self) -> jax.Array:
        """The matrix [in, out]."""
        return self.array.T if self.transposed else self.array
