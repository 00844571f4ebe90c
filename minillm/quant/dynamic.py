"""Dynamic: both sides of a product in few bits, x rounded as it comes.

How x is rounded, and which product of `ops` follows, is a `Product`. Scales of x belong to single tokens, or to
parts of them, and never to a batch: what a model says must not depend on who else is asked.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ..ops import (
    encode_blocks,
    encode_float,
    encode_ints,
    fp8_matmul,
    grouped_int_matmul,
    int8_matmul,
    mx_matmul,
    nvfp4_matmul,
)
from ..ops.formats.rounding import divided
from .coded import Coded
from .grouped import grouped_product
from .storage import PER_LARGEST, Blocks, Floats, Ints, Storage

BESIDE = 16  # columns that count for scales alone: a block of NVFP4, the largest there is with a scale a token


class Product(Protocol):
    """x f32 [t d] times the transpose of a matrix [f d] in `storage` -> f32 [t f].

    Where scales of x belong to whole tokens (`by_token`), x may have `BESIDE` columns more than there are weights.
    They count for the scales alone, as the rest of a token does whose other columns are multiplied elsewhere.
    """

    @property
    def storage(self) -> Storage: ...
    @property
    def by_token(self) -> bool: ...
    def __call__(self, x: jax.Array, parts: tuple[jax.Array, ...]) -> jax.Array: ...


@dataclass(frozen=True)
class Int8:
    """Int8 on both sides, a scale an output and one a token: W8A8, the fast one.

    Processors multiply bytes several times faster than floats, and read a quarter of the memory.
    """

    storage: Ints

    @property
    def by_token(self) -> bool:
        return True

    def __call__(self, x: jax.Array, parts: tuple[jax.Array, ...]) -> jax.Array:
        """As `int8_matmul`."""
        codes, scales, _ = encode_ints(x, "int8")
        w = self.storage.coded(parts)
        return int8_matmul(first(codes, w.codes), w.codes, scales[:, 0], w.scales[:, 0])


@dataclass(frozen=True)
class Int4Int8:
    """Int4 in groups times int8, a scale a token: W4A8."""

    storage: Ints

    @property
    def by_token(self) -> bool:
        return True

    def __call__(self, x: jax.Array, parts: tuple[jax.Array, ...]) -> jax.Array:
        """As `grouped_int_matmul`."""
        codes, scales, _ = encode_ints(x, "int8")
        w = self.storage.coded(parts)
        return grouped_int_matmul(first(codes, w.codes), w.codes, scales[:, 0], w.scales, w_zero=w.zeros)


@dataclass(frozen=True)
class Fp8:
    """fp8 e4m3fn on both sides; x has a scale for each token, or for each `group` of its columns."""

    storage: Floats
    group: int | None = None

    @property
    def by_token(self) -> bool:
        return self.group is None

    def __call__(self, x: jax.Array, parts: tuple[jax.Array, ...]) -> jax.Array:
        """As `fp8_matmul`."""
        groups = x.reshape(len(x), -1, self.group or x.shape[1])
        scales = jnp.max(jnp.abs(groups), axis=-1) * PER_LARGEST
        codes = encode_float(divided(groups, scales), "e4m3fn", saturate=True).reshape(x.shape)
        return fp8_matmul(first(codes, parts[0]), parts[0], scales, parts[1])


@dataclass(frozen=True)
class Mx:
    """One MX format on both sides."""

    storage: Blocks

    @property
    def by_token(self) -> bool:
        return False

    def __call__(self, x: jax.Array, parts: tuple[jax.Array, ...]) -> jax.Array:
        """As `mx_matmul`."""
        format, w = self.storage.format, self.storage.coded(parts)
        coded = encode_blocks(x, format)
        return mx_matmul(coded.elements, w.elements, coded.scales, w.scales, format=format)


@dataclass(frozen=True)
class NVFP4:
    """NVFP4 on both sides; the scale in float32 is one a token for x, and one for all of the matrix."""

    storage: Blocks

    @property
    def by_token(self) -> bool:
        return True

    def __call__(self, x: jax.Array, parts: tuple[jax.Array, ...]) -> jax.Array:
        """As `nvfp4_matmul`, token by token."""
        w = self.storage.coded(parts)

        def token(row: jax.Array) -> jax.Array:
            one = encode_blocks(row[None], "nvfp4")
            elements, scales = first(one.elements, w.elements), first(one.scales, w.scales)
            return nvfp4_matmul(elements, w.elements, scales, w.scales, one.tensor_scale, w.tensor_scale[0, 0])[0]

        return jax.lax.map(token, x)


def first(x: jax.Array, w: jax.Array) -> jax.Array:
    """As many columns of x as w has."""
    return x[:, : w.shape[1]]


@struct.dataclass
class Dynamic:
    """A weight in few bits that rounds x too; it multiplies on one side only, the one whose rows have scales."""

    weight: Coded
    product: Any = struct.field(pytree_node=False)

    __array_ufunc__ = None

    @staticmethod
    def of(w: np.ndarray, product: Product, transposed: bool) -> "Dynamic":
        """As `Coded.of`."""
        return Dynamic(Coded.of(w, product.storage, transposed), product)

    @property
    def shape(self) -> tuple[int, int]:
        """(in, out)."""
        return self.weight.shape

    @property
    def T(self) -> "Dynamic":
        """The transpose, sharing the parts."""
        return Dynamic(self.weight.T, self.product)

    def __rmatmul__(self, x: jax.Array) -> jax.Array:
        """x [..., in] @ self -> [..., out] in x's dtype; ValueError for the side that has no scale an output."""
        if not self.weight.transposed:
            raise ValueError("Dynamic: x @ w is asked of an embedding, expected x @ w.T: its scales belong to rows")
        if x.shape[-1] - self.shape[0] not in ((0, BESIDE) if self.product.by_token else (0,)):
            raise ValueError(f"Dynamic: x has {x.shape[-1]} columns, but the weight is {list(self.shape)}")
        y = self.product(x.reshape(-1, x.shape[-1]).astype(jnp.float32), self.weight.parts)
        return y.astype(x.dtype).reshape(*x.shape[:-1], -1)

    def grouped(self, x: jax.Array, sizes: jax.Array) -> jax.Array:
        """x [rows, in] sorted by group, sizes i32 [e] -> [rows, out], each group's rows by its own matrix."""
        return grouped_product(x, self, sizes)

    def rows(self, ids: jax.Array) -> jax.Array:
        """ids [...] -> rows of the weight; an id out of range gives NaN."""
        return self.weight.rows(ids)

    def dense(self) -> jax.Array:
        """The matrix [in, out], or the matrices [e, in, out], in float32."""
        return self.weight.dense()
