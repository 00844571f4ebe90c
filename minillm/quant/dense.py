"""Dense: a matrix stored as plain floating-point numbers."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from .grouped import grouped_gradient, grouped_product


@struct.dataclass
class Dense:
    """`array` is [in, out], or [out, in] when `transposed`; [e, in, out] or [e, out, in] for e experts.

    Checkpoints store [out, in]: `Dense(array).T` is a linear layer that needs no copy at load, and on a CPU
    that order is also the faster one for a single row, as in decoding.
    """

    array: jax.Array
    transposed: bool = struct.field(pytree_node=False, default=False)

    __array_ufunc__ = None  # NumPy arrays on the left defer to __rmatmul__

    @property
    def shape(self) -> tuple[int, int]:
        """(in, out)."""
        rows, columns = self.array.shape[-2:]
        return (columns, rows) if self.transposed else (rows, columns)

    @property
    def T(self) -> "Dense":
        """The transpose, sharing the array."""
        return Dense(self.array, not self.transposed)

    def __rmatmul__(self, x: jax.Array) -> jax.Array:
        """x [..., in] @ self -> [..., out] in x's dtype, summed in float32 or wider."""
        if self.array.ndim != 2:
            matrices = [*self.array.shape[:-2], *self.shape]
            raise ValueError(f"Dense: the weight is {matrices}, one matrix for each group, expected a single one")
        if x.shape[-1] != self.shape[0]:
            raise ValueError(f"Dense: x has {x.shape[-1]} columns, but the weight is {list(self.shape)}")
        contracted, rows = 1 if self.transposed else 0, x.reshape(-1, x.shape[-1])
        if len(rows) == 1 and x.dtype.itemsize < 4:  # a lone row of them takes a CPU ten times as long as two
            rows = jnp.concatenate([rows, jnp.zeros_like(rows)])
        y = jax.lax.dot_general(
            rows,
            self.array.astype(x.dtype),
            (((1,), (contracted,)), ((), ())),
            preferred_element_type=np.promote_types(x.dtype, np.float32),
        )
        return y[: math.prod(x.shape[:-1])].astype(x.dtype).reshape(*x.shape[:-1], self.shape[1])

    def grouped(self, x: jax.Array, sizes: jax.Array) -> jax.Array:
        """x [rows, in] sorted by group, sizes i32 [e] -> [rows, out], each group's rows by its own matrix."""
        matrices = [*self.array.shape[:-2], *self.shape]
        if matrices[:-1] != [len(sizes), x.shape[1]]:
            raise ValueError(f"Dense: x is {list(x.shape)} in {len(sizes)} groups, but the weight is {matrices}")
        return stack_product(x, self, sizes)

    def rows(self, ids: jax.Array) -> jax.Array:
        """ids [...] -> [..., out]; an id out of range gives NaN."""
        ids = jnp.where(ids < 0, self.shape[0], ids)  # a negative id would count from the end
        return jnp.take(self.dense(), ids, axis=0, mode="fill")

    def for_rows(self, n: int) -> "Dense":
        """The same matrix in the order that products with n rows want on a CPU.

        Measured on matrices of 576 to 4096: in float32 [out, in] is 5 to 15 % faster for a lone row, [in, out]
        takes 60 to 70 % of its time for 2 to 16 rows, and beyond 32 there is no difference.
        """
        transposed = n == 1 or self.array.dtype != np.float32
        if self.array.ndim != 2 or transposed == self.transposed:
            return self
        if isinstance(self.array, jax.ShapeDtypeStruct):
            shape: Any = jax.ShapeDtypeStruct(self.array.shape[::-1], self.array.dtype)
            return Dense(shape, transposed)
        return Dense(jax.device_put(np.ascontiguousarray(np.asarray(self.array).T)), transposed)

    def dense(self) -> jax.Array:
        """The matrix [in, out], or the matrices [e, in, out]."""
        return self.array.swapaxes(-1, -2) if self.transposed else self.array


@jax.custom_vjp
def stack_product(x: jax.Array, weight: Dense, sizes: jax.Array) -> jax.Array:
    """`grouped_product`, with the gradient that jax cannot find through a loop of unknown length."""
    return grouped_product(x, weight, sizes)


def stack_forward(x: jax.Array, weight: Dense, sizes: jax.Array) -> tuple[jax.Array, tuple]:
    """The product, and what its gradient needs."""
    return grouped_product(x, weight, sizes), (x, weight, sizes)


def stack_backward(saved: tuple, dy: jax.Array) -> tuple[jax.Array, Dense, None]:
    """Gradients of x and of the matrices; sizes are whole numbers and have none."""
    x, weight, sizes = saved
    dw = grouped_gradient(x, dy, sizes).astype(weight.array.dtype)
    dw = dw.swapaxes(1, 2) if weight.transposed else dw
    return grouped_product(dy, weight.T, sizes), Dense(dw, weight.transposed), None


stack_product.defvjp(stack_forward, stack_backward)
