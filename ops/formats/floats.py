"""Small floating-point formats in JAX: casts made of integer operations alone (definition in `floats_ref.py`).

A float32 is an integer of 24 bits and a power of two. In a format with m mantissa bits, whose smallest exponent is
`least`, it becomes that integer with all but its first m + 1 bits shifted out, more where the exponent is below
`least`. Rounding is what is done with the bits that fall out. A carry needs no care: codes count on from one
exponent to the next. No step can flush a subnormal or round twice, so results are the same on every device.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ..shapes import shaped
from .checks import check_narrow
from .floats_ref import RANDOM_BITS, Rounding, check_rounding, decode_float_ref, float_format, random_bits


@shaped("codes: ... int")
def decode_float(codes: jax.Array, format: str) -> jax.Array:
    """Float32 numbers of integer codes [...]; bits beyond the format's are ignored."""
    form = float_format(format)
    every = np.arange(1 << form.bits)
    table = jnp.asarray(decode_float_ref(every, format).astype(np.float32))
    return table[codes.astype(jnp.int32) & (every.size - 1)]


@shaped("x: ... float, random: ... int")
def encode_float(
    x: jax.Array,
    format: str,
    *,
    rounding: Rounding = "nearest",
    saturate: bool = False,
    random: jax.Array | None = None,
    exponent: jax.Array | int = 0,
) -> jax.Array:
    """Codes of numbers x [...] of float32 or narrower: uint8, or uint16 of formats with 16 bits.

    Arguments as in `encode_float_ref`; random is what `jax.random.bits(key, x.shape, "uint32")` gives. x is divided
    by 2^exponent, i32 [...] from -128 to 128, before anything is rounded.
    """
    form = float_format(format)
    check_rounding("encode_float", rounding)
    check_narrow("encode_float", x)
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    whole, power = as_integer(x)
    power, least = power - exponent, 1 - form.bias
    rank = jnp.maximum(power, least)  # the exponent whose steps are counted
    out = 23 - form.m + rank - power  # how many bits fall out
    code = rounded_shift(whole, out, rounding, random).astype(jnp.int32) + ((rank - least) << form.m)

    is_nan, is_inf = (bits & 0x7FFFFFFF) > 0x7F800000, (bits & 0x7FFFFFFF) == 0x7F800000
    over = (code > form.largest) & (is_inf | (rounding != "toward zero"))
    instead = (
        form.largest if saturate else next(c for c in (form.infinity, form.nan, form.largest) if c is not None)
    )
    code = jnp.where(over, instead, jnp.minimum(code, form.largest))
    sign = 1 << (form.bits - 1)
    code = jnp.where(is_nan, sign if form.nan is None else form.nan, code)
    code = code ^ jnp.where(bits >> 31 == 1, sign, 0)
    return code.astype(jnp.uint16 if form.bits > 8 else jnp.uint8)


def as_integer(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """|x| of finite x [...] as whole * 2^(power - 23): whole uint32 from 2^23 to 2^24, or 0; power i32."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    exponent = ((bits >> 23) & 0xFF).astype(jnp.int32)
    whole = (bits & 0x7FFFFF) | jnp.where(exponent > 0, jnp.uint32(1 << 23), jnp.uint32(0))
    missing = jnp.where(whole > 0, jax.lax.clz(whole) - 8, 0)  # leading zeros of a subnormal
    power = jnp.maximum(exponent, 1) - 127 - missing.astype(jnp.int32)
    return whole << missing, jnp.where(whole > 0, power, -512)


def rounded_shift(whole: jax.Array, out: jax.Array, rounding: Rounding, random: jax.Array | None) -> jax.Array:
    """whole uint32 [...] below 2^24, without its `out` i32 [...] last bits, and what they decide."""
    beyond = jnp.clip(out - RANDOM_BITS, 0, 31).astype(jnp.uint32)
    out = jnp.minimum(out, 25).astype(jnp.uint32)  # by then all has fallen out, and is less than half
    kept, fallen = whole >> out, whole & ((jnp.uint32(1) << out) - 1)
    if rounding == "toward zero":
        return kept
    if rounding == "nearest":
        half = jnp.where(out > 0, (jnp.uint32(1) << out) >> 1, jnp.uint32(1))
        return kept + ((fallen > half) | ((fallen == half) & (kept % 2 == 1))).astype(jnp.uint32)
    way = fallen << (RANDOM_BITS - jnp.minimum(out, RANDOM_BITS)) >> beyond  # in steps of 2^-24
    return kept + ((way + (random_bits("encode_float", random, whole.shape) >> (32 - RANDOM_BITS))) >> RANDOM_BITS)
