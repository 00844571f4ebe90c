"""What the GPU kernels share: tiles, and how they come from memory and go back (Pallas on its Triton backend).

A kernel is one program, run at every place of a grid. It sees whole arrays in the GPU's memory by reference and
computes on tiles, which are in registers. The sides of a tile are powers of two and at least 16, as tensor cores
want them, so a tile often reaches beyond its array: a mask says which of its elements are real. The others are
never read; they are 0, or whatever the kernel asks for.

`interpret=True` has JAX run a kernel on any device, one place of the grid after the other, to see whether it is
right. Without it a kernel is compiled for a GPU, and where there is none that is an error.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

LEAST_SIDE = 16


def side(n: int) -> int:
    """The side of a tile that holds n elements."""
    return max(LEAST_SIDE, 1 << (n - 1).bit_length())


def chosen_sides(op: str, dtype: Any, **sides: int | None) -> tuple[int, ...]:
    """The sides of tiles asked for, or else 64, and 32 in float32; ValueError for what no tile can have.

    Tensor cores would round float32 to ten bits (TF32). Without them the factors of its products are in the
    registers of single threads, and tiles of 64 are too many for those (ptxas counts what spills).
    """
    usual = 64 if dtype.itemsize < 4 else 32
    for name, n in sides.items():
        if n is not None and (n < LEAST_SIDE or n & (n - 1)):
            raise ValueError(f"{op}: {name} is {n}, expected a power of two of at least {LEAST_SIDE}")
    return tuple(usual if n is None else n for n in sides.values())


def run(
    kernel: Callable,
    grid: tuple[int, ...],
    inputs: Any,
    outputs: Any,
    *,
    name: str,
    warps: int,
    interpret: bool,
) -> Any:
    """Call kernel(inputs, *outputs) at each place of the grid -> the outputs, given by shape and dtype.

    Both may be trees of arrays. `warps` of 32 threads share the work of a program. Its loops run in three stages:
    positions or page numbers are read first, then the rows they stand for, then comes the work, and each turn of a
    loop does one of these for another tile.
    """
    params = triton.CompilerParams(num_warps=warps, num_stages=3)
    call = pl.pallas_call(
        kernel, grid=grid, out_shape=outputs, name=name, interpret=interpret, compiler_params=params
    )
    return call(inputs)


def read(ref: Any, index: tuple, real: jax.Array, other: Any = 0) -> jax.Array:
    """Elements of `ref` at an index an axis, arrays that broadcast to the tile `real`; `other` if not real."""
    other = jnp.broadcast_to(jnp.asarray(other, ref.dtype), real.shape)
    return triton.load(ref.at[index], mask=real, other=other)


def read_rows(ref: Any, index: tuple, real: jax.Array, other: Any = 0) -> jax.Array:
    """Rows of `ref` [… k] at an index for each axis but the last -> [m, side(k)], `other` beyond k and if not real.

    An index is a number or an array [m], as is `real`.
    """
    index, inside = over_channels(ref, index, real)
    return read(ref, index, inside, other)


def write_rows(ref: Any, index: tuple, real: jax.Array, rows: jax.Array) -> None:
    """Put `rows` where `read_rows` would have found them, as far as they are real."""
    index, inside = over_channels(ref, index, real)
    write(ref, index, inside, rows)


def write(ref: Any, index: tuple, real: jax.Array, values: jax.Array) -> None:
    """Put `values` where `read` would have found them, as far as they are real."""
    triton.store(ref.at[index], values.astype(ref.dtype), mask=real)


def over_channels(ref: Any, index: tuple, real: jax.Array) -> tuple[tuple, jax.Array]:
    """Index and mask of rows [m], for each of their channels [m, side(k)]."""
    channel = jnp.arange(side(ref.shape[-1]), dtype=jnp.int32)
    columns = [x[:, None] if jnp.ndim(x) else x for x in index]
    return (*columns, channel[None]), real[:, None] & (channel < ref.shape[-1])[None]


def product(x: jax.Array, w: jax.Array) -> jax.Array:
    """x [m d] times w [d n] -> f32 [m n]. Tensor cores multiply 16 bits; float32 is not rounded to fewer."""
    return jnp.dot(x, w, precision="highest", preferred_element_type=jnp.float32)


def product_in_pieces(x: jax.Array, w: jax.Array) -> jax.Array:
    """x [m d] times w [d n] -> f32 [m n] on tensor cores, as exact as of float32, which either of them may be.

    Three pieces of 16 bits hold a float32. Of their products those are left out that come to less than a rounding.
    """
    pairs = [(a, b) for i, a in enumerate(pieces(x)) for j, b in enumerate(pieces(w)) if i + j < 3]
    return sum((product(a, b) for a, b in reversed(pairs[:-1])), product(*pairs[-1]))  # the least first


def pieces(x: jax.Array) -> list[jax.Array]:
    """Bfloat16 arrays that add up to x, the largest first: x itself, or of any other float three."""
    if x.dtype == jnp.bfloat16:
        return [x]
    rest, found = x.astype(jnp.float32), []
    for _ in range(3):
        bits = jax.lax.bitcast_convert_type(rest, jnp.int32)
        piece = jax.lax.bitcast_convert_type(bits & ~0xFFFF, jnp.float32)  # the bits of it that a bfloat16 has
        found.append(piece.astype(jnp.bfloat16))
        rest = rest - piece
    return found
