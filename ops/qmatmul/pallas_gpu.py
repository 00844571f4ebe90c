"""Products with weights of 8 or 4 bits for GPUs, in Pallas on its Triton backend (definition in `ref.py`).

A weight travels from memory as its code and becomes a number only in registers (as in Marlin, Frantar et al. 2024,
arXiv:2408.11743): in decoding, where nearly all that is read are weights, fewer bits are as much less to read.

    y[t,f] = sum_c  w_scale[f,c]  sum_{d in group c} x[t,d] (w[f,d] - w_zero[f,c])

Scales come in after the inner sums: codes are small whole numbers, which bfloat16 holds exactly, so tensor cores
multiply them with x without rounding anything, and add in float32.

    grid      tiles of `f_block` outputs, tiles of `t_block` rows of x
    d         a loop over tiles of `d_block` columns, none of which reaches from one group into the next
    4 bits    the dtype of w says how codes lie in memory: int4 and uint4 are two in a byte. They are not put side
              by side again: the even columns of x meet the low halves of the bytes, the odd ones the high halves
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from ..pallas_gpu import chosen_sides, product, read, run, side, write
from ..shapes import shaped

BITS = {"int8": 8, "uint8": 8, "int4": 4, "uint4": 4}


class Inputs(NamedTuple):
    """What programs read: arrays outside of the kernel, references to them inside. w_zero may be None."""

    x: Any
    w: Any  # f d, or f d/2 bytes of two codes
    w_scale: Any
    w_zero: Any


@shaped("x: t d float, w: f d int, w_scale: f c float, w_zero: f c int")
def weight_only_matmul_gpu(
    x: jax.Array,
    w: jax.Array,
    w_scale: jax.Array,
    *,
    w_zero: jax.Array | None = None,
    t_block: int | None = None,
    f_block: int | None = None,
    d_block: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """As `weight_only_matmul`, for codes w of int8, uint8, int4 or uint4.

    A code less its zero must be at most 256 away from 0, which no code of 8 bits with a zero of 8 bits exceeds.
    ValueError for other codes, groups that do not come out even (or, of 4 bits, with an odd number of codes), and
    blocks that are not powers of two of at least 16. `interpret` as in `ops/pallas_gpu.py`.
    """
    op, (t, d), (f, c), kind = "weight_only_matmul_gpu", x.shape, w_scale.shape, w.dtype.name
    t_block, f_block, d_block = chosen_sides(op, x.dtype, t_block=t_block, f_block=f_block, d_block=d_block)
    if kind not in BITS:
        raise ValueError(f"{op}: w is {kind}, expected one of {', '.join(BITS)}")
    per_byte = 8 // BITS[kind]
    if not c or d % (c * per_byte):
        raise ValueError(f"{op}: {d} columns of {kind} and {c} scales for a row, expected groups of whole bytes")
    if per_byte == 2:
        w = jax.lax.bitcast_convert_type(w.reshape(f, d // 2, 2), jnp.uint8)
    t_block, f_block = min(t_block, side(t)), min(f_block, side(f))
    d_block = min(d_block, side(d // c // per_byte))
    return run(
        partial(matmul_kernel, kind=kind, t_block=t_block, f_block=f_block, d_block=d_block),
        (pl.cdiv(f, f_block), pl.cdiv(t, t_block)),
        Inputs(x, w, w_scale, w_zero),
        jax.ShapeDtypeStruct((t, f), x.dtype),
        name=op,
        warps=4,
        interpret=interpret,
    )


def matmul_kernel(given: Inputs, y_ref: Any, *, kind: str, t_block: int, f_block: int, d_block: int) -> None:
    """One tile of y."""
    f = pl.program_id(0) * f_block + jnp.arange(f_block, dtype=jnp.int32)
    t = pl.program_id(1) * t_block + jnp.arange(t_block, dtype=jnp.int32)
    f_real, t_real, per_byte = f < given.w.shape[0], t < given.x.shape[0], 8 // BITS[kind]
    c = given.w_scale.shape[1]
    size = given.w.shape[1] // c  # of a group, in bytes
    tiles = pl.cdiv(size, d_block)

    def step(i: jax.Array, y: jax.Array) -> jax.Array:
        group, place = jax.lax.div(i, tiles), jax.lax.rem(i, tiles) * d_block
        place = place + jnp.arange(d_block, dtype=jnp.int32)
        column, inside = group * size + place, place < size
        stored = read(given.w, (f[None], column[:, None]), inside[:, None] & f_real[None])  # d f
        zero = 0 if given.w_zero is None else read(given.w_zero, (f, group), f_real).astype(jnp.int32)[None]
        total = jnp.zeros((t_block, f_block), jnp.float32)
        for half in range(per_byte):
            index = t[:, None], (column * per_byte + half)[None]
            x = read(given.x, index, t_real[:, None] & inside[None])  # 0 beyond the group, whatever w is there
            total += product(x, (codes(stored, kind, half) - zero).astype(x.dtype))
        return y + total * read(given.w_scale, (f, group), f_real).astype(jnp.float32)[None]

    y = jax.lax.fori_loop(0, c * tiles, step, jnp.zeros((t_block, f_block), jnp.float32))
    write(y_ref, (t[:, None], f[None]), t_real[:, None] & f_real[None], y)


def codes(stored: jax.Array, kind: str, half: int) -> jax.Array:
    """Codes as int32: those of one half of each byte, if there are two in it."""
    wide = stored.astype(jnp.int32)
    if BITS[kind] == 8:
        return wide
    code = (wide >> (4 * half)) & 15
    return (code ^ 8) - 8 if kind == "int4" else code  # 8 … 15 stand for -8 … -1
