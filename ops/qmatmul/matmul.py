"""Products of quantised matrices in JAX, each to the bit as its recipe in `recipes.py` says.

Two things keep a compiler from changing bits. Products of codes are exact, so a fused multiply-add rounds no other
way than a product and a sum. Products with scales are not, so they are all done before a loop begins that adds
them.
"""

import math

import jax
import jax.numpy as jnp

from ..formats.blocks import numbers_of
from ..formats.blocks_ref import block_format
from ..formats.e8m0 import E8M0_NAN
from ..formats.floats import decode_float
from ..formats.rounding import power_of_two
from ..shapes import shaped

LONGEST_SUM = 2**31 // (255 * 128)  # of products of uint8 and int8
COLUMNS, FEW_ROWS, LONG_ROW = 4, 64, 1024  # measured with XLA 0.10 on a CPU, see `weights_first`


@shaped("x: t d int, w: f d int, x_scale: t float, w_scale: f float, x_zero: t int")
def int8_matmul(
    x: jax.Array,
    w: jax.Array,
    x_scale: jax.Array,
    w_scale: jax.Array,
    *,
    x_zero: jax.Array | None = None,
) -> jax.Array:
    """As `int8_matmul_ref`, f32 [t f]: codes of a token have one scale, those of an output channel another (W8A8).

    Sums are exact in int32. ValueError if d is so large that they might not fit.
    """
    if x.shape[1] > LONGEST_SUM:
        found = f"x has {x.shape[1]} columns"
        raise ValueError(f"int8_matmul: {found}, expected at most {LONGEST_SUM}: sums in int32 might overflow")
    total = int_product(x, w)
    if x_zero is not None:
        total = total - x_zero.astype(jnp.int32)[:, None] * jnp.sum(w.astype(jnp.int32), axis=1)
    x_scale, w_scale = x_scale.astype(jnp.float32), w_scale.astype(jnp.float32)
    return total.astype(jnp.float32) * (x_scale[:, None] * w_scale[None, :])


@shaped("x: t d int, w: f d int, x_scale: t float, w_scale: f c float, w_zero: f c int")
def grouped_int_matmul(
    x: jax.Array,
    w: jax.Array,
    x_scale: jax.Array,
    w_scale: jax.Array,
    *,
    w_zero: jax.Array | None = None,
) -> jax.Array:
    """As `grouped_int_matmul_ref`, f32 [t f]: a token's codes have one scale, those of w one a group (W4A8)."""
    x, w = (by_group("grouped_int_matmul", codes, w_scale) for codes in (x, w))  # c t o, c f o
    total = jax.vmap(int_product)(x, w)
    if w_zero is not None:
        total = total - jnp.sum(x.astype(jnp.int32), axis=2)[..., None] * w_zero.T[:, None].astype(jnp.int32)
    x_scale, w_scale = x_scale.astype(jnp.float32), w_scale.astype(jnp.float32)
    return added(total.astype(jnp.float32) * w_scale.T[:, None]) * x_scale[:, None]


@shaped("x: t d float, w: f d int, w_scale: f c float, w_zero: f c int")
def weight_only_matmul(
    x: jax.Array, w: jax.Array, w_scale: jax.Array, *, w_zero: jax.Array | None = None
) -> jax.Array:
    """As `weight_only_matmul_ref`, [t f] in x's dtype: w as float32, its products with x summed there in any
    order.
    """
    groups = by_group("weight_only_matmul", w, w_scale).astype(jnp.int32)  # c f o
    zero = 0 if w_zero is None else w_zero.T[..., None].astype(jnp.int32)
    wide = (groups - zero).astype(jnp.float32) * w_scale.T[..., None].astype(jnp.float32)
    wide = wide.swapaxes(0, 1).reshape(w.shape)
    return jnp.matmul(x.astype(jnp.float32), wide.T, precision="highest").astype(x.dtype)


@shaped("x: t d int, w: f d int, x_scale: a c float, w_scale: e c float")
def fp8_matmul(
    x: jax.Array,
    w: jax.Array,
    x_scale: jax.Array,
    w_scale: jax.Array,
    *,
    x_format: str = "e4m3fn",
    w_format: str = "e4m3fn",
) -> jax.Array:
    """As `fp8_matmul_ref`, f32 [t f]: scales [a c], [e c] of tiles; one for all, by row, or by blocks of both
    axes.
    """
    row_scales = []
    for name, codes, scale in (("x", x, x_scale), ("w", w, w_scale)):
        if not scale.shape[0] or codes.shape[0] % scale.shape[0]:
            rows = f"{codes.shape[0]} rows of {name}"
            raise ValueError(f"fp8_matmul: {rows} and {scale.shape[0]} rows of scales, expected a divisor")
        row_scales.append(jnp.repeat(scale.astype(jnp.float32), codes.shape[0] // scale.shape[0], 0).T)  # c rows
    x, w = decode_float(x, x_format), decode_float(w, w_format)
    parts = in_order(*(by_group("fp8_matmul", one, x_scale) for one in (x, w)))
    return added(parts * (row_scales[0][:, :, None] * row_scales[1][:, None]))


@shaped("x: t d int, w: f d int, x_scale: t c int, w_scale: f c int")
def mx_matmul(
    x: jax.Array, w: jax.Array, x_scale: jax.Array, w_scale: jax.Array, *, format: str = "mxfp4"
) -> jax.Array:
    """As `mx_matmul_ref`, f32 [t f]."""
    form = block_format(format)
    parts = in_order(*(by_group("mx_matmul", numbers_of(codes, form), x_scale, form.size) for codes in (x, w)))
    x_code, w_code = x_scale.T[:, :, None].astype(jnp.int32), w_scale.T[:, None].astype(jnp.int32)
    exponent = jnp.maximum(x_code + w_code - 254, -252)
    half = exponent // 2  # the whole may be beyond float32
    parts = parts * power_of_two(half) * power_of_two(exponent - half)
    return added(jnp.where((x_code == E8M0_NAN) | (w_code == E8M0_NAN), jnp.nan, parts))


@shaped("x: t d int, w: f d int, x_scale: t c int, w_scale: f c int, x_tensor: float, w_tensor: float")
def nvfp4_matmul(
    x: jax.Array,
    w: jax.Array,
    x_scale: jax.Array,
    w_scale: jax.Array,
    x_tensor: jax.Array,
    w_tensor: jax.Array,
) -> jax.Array:
    """As `nvfp4_matmul_ref`, f32 [t f]."""
    size = block_format("nvfp4").size
    x, w = decode_float(x, "e2m1"), decode_float(w, "e2m1")
    parts = in_order(*(by_group("nvfp4_matmul", one, x_scale, size) for one in (x, w)))
    x_wide, w_wide = decode_float(x_scale, "e4m3fn").T, decode_float(w_scale, "e4m3fn").T
    tensor_scale = x_tensor.astype(jnp.float32) * w_tensor.astype(jnp.float32)
    return added(parts * (x_wide[:, :, None] * w_wide[:, None])) * tensor_scale


def int_product(x: jax.Array, w: jax.Array) -> jax.Array:
    """x w^T of integers [t d], [f d] in int32; two of int8 stay so, as processors have instructions for that."""
    if not x.dtype == w.dtype == jnp.int8:
        return rows_first(x.astype(jnp.int32), w.astype(jnp.int32))
    t, d = x.shape
    few = 2 * t <= COLUMNS or (t <= FEW_ROWS and d >= LONG_ROW)
    return jax.lax.platform_dependent(x, w, cpu=weights_first if few else rows_first, default=rows_first)


def rows_first(x: jax.Array, w: jax.Array) -> jax.Array:
    """x w^T as it is written."""
    return jax.lax.dot_general(x, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)


def weights_first(x: jax.Array, w: jax.Array) -> jax.Array:
    """(w x^T)^T: XLA for a CPU rearranges the second matrix at each product, which here is the small one.

    It works on `COLUMNS` columns of that at a time. If t are fewer, g rows of weights become one of g d numbers,
    and x stands g times in a matrix of zeros, each time further right: nothing is read twice, and longer rows are
    read faster.
    """
    (t, d), f = x.shape, len(w)
    g = math.gcd(f, COLUMNS // t) if 0 < t <= COLUMNS else 1
    places = jnp.kron(jnp.eye(g, dtype=x.dtype), x)  # g t, g d
    places = jnp.pad(places, ((0, max(2 - g * t, 0)), (0, 0)))  # a lone row would take another, slow way
    y = jax.lax.optimization_barrier(rows_first(w.reshape(f // g, g * d), places))  # or XLA swaps them again
    return y[:, : g * t].reshape(f, t).T


def by_group(op: str, x: jax.Array, scales: jax.Array, size: int | None = None) -> jax.Array:
    """x [t d] as [c t o] for scales [... c]; ValueError if groups do not come out even, or not as large as
    `size`.
    """
    (t, d), c = x.shape, scales.shape[-1]
    if not c or d % c or (size is not None and d != c * size):
        wanted = f"{size} columns for each" if size else "a divisor of the columns"
        raise ValueError(f"{op}: {d} columns and {c} scales for a row, expected {wanted}")
    return x.reshape(t, c, d // c).swapaxes(0, 1)


def in_order(x: jax.Array, w: jax.Array) -> jax.Array:
    """Sums f32 [c t f] of x [c t o] times w [c f o] over o, one product after the other."""

    def add(y: jax.Array, column: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return y + column[0][:, :, None] * column[1][:, None], None

    start = jnp.zeros((*x.shape[:2], w.shape[1]), jnp.float32)
    return jax.lax.scan(add, start, (jnp.moveaxis(x, 2, 0), jnp.moveaxis(w, 2, 0)))[0]


def added(parts: jax.Array) -> jax.Array:
    """Sum f32 [t f] of parts [c t f], one after the other."""
    return jax.lax.scan(lambda y, part: (y + part, None), jnp.zeros_like(parts[0]), parts)[0]
