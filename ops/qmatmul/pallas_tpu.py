"""Weights of 8 or 4 bits times activations for TPUs, in Pallas (recipe and definition as in `weight_only_matmul`).

A product with few rows takes as long as its weights take to come from memory. So they come as codes, and only a
tile of them at a time is ever wide, in VMEM: W = scale (code - zero), as AWQ's kernels do it (Lin et al. 2023,
arXiv:2306.00978, section 4).

    grid        tiles of t, tiles of f, tiles of d. A step sees
    x           [t d]         block t_block, d_block
    w           [f d]         block f_block, d_block    int8, uint8, int4 or uint4; two of four bits fill a byte
    scale       [q e f]       block e, f_block          of the e groups of columns in each of q tiles of d; so is
                                                        zero
    y           [t f]         block t_block, f_block    the sum waits in VMEM for the last tile of d

A tile of d is whole groups, or part of one. Tiles of t and f may reach past the end: what is there are rows and
columns of their own, which are never written.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..pallas_tpu import LANES, SUBLANES, places, product
from ..shapes import shaped
from ..tiles import round_up


class Inputs(NamedTuple):
    """What a step reads: arrays outside of the kernel, references to blocks inside. None: not given."""

    x: Any
    w: Any
    scale: Any
    zero: Any


@shaped("x: t d float, w: f d int, w_scale: f c float, w_zero: f c int")
def weight_only_matmul_tpu(
    x: jax.Array,
    w: jax.Array,
    w_scale: jax.Array,
    *,
    w_zero: jax.Array | None = None,
    t_block: int = 128,
    f_block: int = 256,
    d_block: int = 512,
    interpret: bool = False,
) -> jax.Array:
    """As `weight_only_matmul_ref`, [t f] in x's dtype: w as float32, its products with x summed there.

    ValueError if groups do not come out even, or if `t_block`, `f_block` or `d_block`, the sides of tiles, are less
    than 1. `interpret` as in `ops/pallas_tpu.py`.
    """
    op, (t, d), f, c = "weight_only_matmul_tpu", x.shape, len(w), w_scale.shape[1]
    if not c or d % c:
        raise ValueError(f"{op}: {d} columns and {c} scales for a row, expected a divisor of the columns")
    if min(t_block, f_block, d_block) < 1:
        raise ValueError(f"{op}: blocks are {t_block}, {f_block} and {d_block}, expected at least 1")
    groups, size = groups_in_tile(c, d // c, d_block)
    t_block, f_block = min(t_block, round_up(t, SUBLANES)), min(f_block, round_up(f, LANES))

    def by_tile(x: jax.Array) -> jax.Array:
        x = jnp.repeat(x.astype(jnp.float32), d // c // size, axis=1)
        return x.reshape(f, -1, groups).transpose(1, 2, 0)

    given = Inputs(x, w, by_tile(w_scale), None if w_zero is None else by_tile(w_zero))
    per_group = pl.BlockSpec((None, groups, f_block), lambda i, j, q: (q, 0, j))
    specs = Inputs(
        x=pl.BlockSpec((t_block, groups * size), lambda i, j, q: (i, q)),
        w=pl.BlockSpec((f_block, groups * size), lambda i, j, q: (j, q)),
        scale=per_group,
        zero=None if w_zero is None else per_group,
    )
    grid = pl.cdiv(t, t_block), pl.cdiv(f, f_block), d // (groups * size)
    return pl.pallas_call(
        partial(matmul_kernel, size=size),
        grid=grid,
        in_specs=[specs],
        out_specs=pl.BlockSpec((t_block, f_block), lambda i, j, q: (i, j)),
        out_shape=jax.ShapeDtypeStruct((t, f), x.dtype),
        scratch_shapes=[pltpu.VMEM((t_block, f_block), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=2 * t * f * d,
            transcendentals=0,
            bytes_accessed=grid[1] * x.nbytes
            + grid[0] * (f * d * jax.dtypes.itemsize_bits(w.dtype) // 8 + 4 * f * c)
            + t * f * x.dtype.itemsize,
        ),
        name=op,
        interpret=interpret,
    )(given)


def matmul_kernel(given: Inputs, y: Any, total: Any, *, size: int) -> None:
    """One step: tiles of x and w, the latter made wide."""
    q = pl.program_id(2)

    @pl.when(q == 0)
    def _():
        total[...] = jnp.zeros(total.shape, jnp.float32)

    w = given.w[...].astype(jnp.int32).astype(jnp.float32)
    if given.zero is not None:
        w -= spread(given.zero[...], size)
    w *= spread(given.scale[...], size)
    total[...] += product("td,fd->tf", given.x[...].astype(jnp.float32), w)

    @pl.when(q == pl.num_programs(2) - 1)
    def _():
        y[...] = total[...].astype(y.dtype)


def spread(x: jax.Array, size: int) -> jax.Array:
    """x [e f] -> [f e*size], each number `size` times: by a product with 0 and 1, as lanes cannot be repeated."""
    group, column = (places((len(x), len(x) * size), axis) for axis in (0, 1))
    inside = (column >= group * size) & (column < (group + 1) * size)
    return product("ef,ed->fd", x, inside.astype(jnp.float32))


def groups_in_tile(c: int, size: int, d_block: int) -> tuple[int, int]:
    """How many of c groups of `size` columns make a tile of at most d_block, and how large they then are.

    Groups that are larger than a tile are cut into equal parts.
    """
    if size > d_block:
        return 1, math.gcd(size, d_block)
    return max(n for n in range(1, d_block // size + 1) if c % n == 0), size
