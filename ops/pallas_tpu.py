"""What the TPU kernels share (Pallas, whose TPU compiler is called Mosaic).

A kernel is called once for each step of a grid. A TPU core takes the steps one after the other, the last axis
fastest, and computes on what is in its fast memory, VMEM (16 MB on a v5e). A BlockSpec says for one array which
part of it a step sees there: the shape of a block, and from the place in the grid which block it is. While a step
computes, the blocks of the next one are copied from main memory, unless they are those that are there already.
Scratch memory in VMEM keeps what one step leaves for the next.

Registers hold 8 x 128 numbers of 32 bits, sublanes and lanes, so of the last two axes of an array a block takes
all, or a multiple of 8 (16 in bfloat16, 32 in int8) and of 128. Where blocks do not fit into VMEM, the compiler
refuses the program. A number for each row of a tile is a column [n 1], one for each column a row [1 n]: both
broadcast over the tile at no cost, and turning one into the other is what kernels avoid.

`interpret=True` has JAX run a kernel on any device, one step after the other, to see whether it is right. Without
it a kernel is compiled for a TPU, and where there is none that is an error.
"""

import jax
import jax.numpy as jnp

SUBLANES, LANES = 16, 128  # tiles of both bfloat16 and float32 have whole registers


def product(letters: str, x: jax.Array, w: jax.Array) -> jax.Array:
    """`einsum` of two arrays in float32.

    The matrix unit multiplies 16 bits. Three pieces of 16 bits hold a float32, and six products of pieces give
    theirs: as these are asked for, no number is rounded to fewer bits.
    """
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jnp.einsum(letters, x, w, precision=precision, preferred_element_type=jnp.float32)


def places(shape: tuple[int, int], axis: int) -> jax.Array:
    """Int32 [m n]: the row of each element (axis 0), or its column (axis 1)."""
    return jax.lax.broadcasted_iota(jnp.int32, shape, axis)
