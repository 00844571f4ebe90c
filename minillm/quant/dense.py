"""Dense: a matrix stored as plain floating-point numbers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from .grouped import grouped_gradient, grouped_product

FEW_ROWS = 64  # up to which `weights_first` is faster


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
        rows, w = x.reshape(-1, x.shape[-1]), self.array.astype(x.dtype)
        few = self.transposed and x.dtype == jnp.float32 and 2 <= len(rows) <= FEW_ROWS
        product = partial(rows_first, contracted=1 if self.transposed else 0)
        y = jax.lax.platform_dependent(rows, w, cpu=weights_first if few else product, default=product)
        return y.astype(x.dtype).reshape(*x.shape[:-1], self.shape[1])

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

    def dense(self) -> jax.Array:
        """The matrix [in, out], or the matrices [e, in, out]."""
        return self.array.swapaxes(-1, -2) if self.transposed else self.array


def rows_first(x: jax.Array, w: jax.Array, contracted: int) -> jax.Array:
    """x [t, in] times w, whose dimension `contracted` is in -> [t, out], summed in float32 or wider."""
    t, wide = len(x), np.promote_types(x.dtype, np.float32)
    if t == 1 and x.dtype.itemsize < 4:  # a lone row of them takes a CPU ten times as long as two
        x = jnp.concatenate([x, jnp.zeros_like(x)])
    return jax.lax.dot_general(x, w, (((1,), (contracted,)), ((), ())), preferred_element_type=wide)[:t]


def weights_first(x: jax.Array, w: jax.Array) -> jax.Array:
    """x [t, in] times w [out, in], as (w x^T)^T: XLA for a CPU rearranges the second matrix at each product.

    Here that is the small one. Measured on matrices of 576 to 3072 in float32, for 2 to 64 rows: 39 to 91 % of
    the time, and 53 to 92 % of that with w [in, out].
    """
    y = jax.lax.dot_general(w, x, (((1,), (1,)), ((), ())))
    return jax.lax.optimization_barrier(y).T  # or XLA would swap them again


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
