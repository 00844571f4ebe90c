"""Blocks of numbers that share a scale, in JAX (definitions in `blocks_ref.py`).

A scale of e8m0 is a power of two, so it is only taken off the exponents of the numbers: no division, no rounding.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ..shapes import shaped
from .blocks_ref import BLOCKS, BlockFormat, Coded, Policy, block_format, check_blocks, in_blocks, policy_of
from .checks import check_narrow
from .e8m0 import E8M0_NAN
from .floats import as_integer, decode_float, encode_float, rounded_shift
from .rounding import divided, normal, power_of_two

__all__ = ["BLOCKS", "decode_blocks", "encode_blocks"]


@shaped("x: ... float")
def encode_blocks(x: jax.Array, format: str, policy: Policy | None = None) -> Coded:
    """As `encode_blocks_ref`, of float32 or narrower; numbers that are not finite give no error and no sense.

    There is no search for the least error: which of two sums is less would depend on their order.
    """
    form = block_format(format)
    policy = policy_of(form, policy, ("floor", "ceil", "absmax"))
    check_narrow("encode_blocks", x)
    x = x.astype(jnp.float32)
    blocks = in_blocks("encode_blocks", x, form)
    largest = jnp.max(jnp.abs(blocks), axis=-1)
    if form.scale == "e4m3fn":
        return encode_nvfp4(x, blocks, largest, form)
    exponent = shared_exponent(largest, form, policy)
    elements = encode_elements(blocks, form, exponent[..., None])
    return Coded(elements.reshape(x.shape), (exponent + 127).astype(jnp.uint8))


def shared_exponent(largest: jax.Array, form: BlockFormat, policy: Policy) -> jax.Array:
    """The exponent E of blocks whose largest magnitudes are given, from -127 to 127; of zeros it is -127."""
    whole, power = as_integer(largest)
    top = int(np.floor(np.log2(form.max)))
    exponent = power - top
    if policy == "ceil":
        exponent = exponent + (whole > int(form.max * 2.0 ** (23 - top))).astype(jnp.int32)
    return jnp.clip(jnp.where(whole > 0, exponent, -127), -127, 127)


def encode_elements(blocks: jax.Array, form: BlockFormat, exponent: jax.Array | int) -> jax.Array:
    """Elements of numbers divided by 2^exponent; too large ones saturate."""
    if form.element_format:
        return encode_float(blocks, form.element, saturate=True, exponent=exponent)
    whole, power = as_integer(blocks)
    steps = rounded_shift(whole, 23 - 6 + exponent - power, "nearest", None).astype(jnp.int32)
    return jnp.where(jnp.signbit(blocks), -jnp.minimum(steps, 127), jnp.minimum(steps, 127)).astype(jnp.int8)


def encode_nvfp4(x: jax.Array, blocks: jax.Array, largest: jax.Array, form: BlockFormat) -> Coded:
    """With a scale in e4m3fn for each block and one in float32 for all."""
    sixth, top = np.float32(1 / 6), np.float32(1 / (6 * 448))
    tensor = normal(jnp.max(largest, initial=0) * top)
    wanted = divided(normal(largest * sixth), jnp.broadcast_to(tensor, largest.shape[:-1]))
    scales = encode_float(wanted, "e4m3fn", saturate=True)
    step = normal(decode_float(scales, "e4m3fn") * tensor)
    return Coded(encode_elements(divided(blocks, step), form, 0).reshape(x.shape), scales, tensor)


def decode_blocks(coded: Coded, format: str) -> jax.Array:
    """Float32 numbers [..., n]: those of `decode_blocks_ref`, but 0 below the normal numbers."""
    form = block_format(format)
    elements = in_blocks("decode_blocks", coded.elements, form)
    check_blocks("decode_blocks", coded, form)
    numbers = numbers_of(elements, form)
    if coded.tensor_scale is not None:
        step = normal(decode_float(coded.scales, "e4m3fn") * coded.tensor_scale)
        return (numbers * step[..., None]).reshape(coded.elements.shape)
    exponent = coded.scales.astype(jnp.int32)[..., None] - 127
    first = exponent // 2  # 2^-127 itself would be no normal number
    numbers = numbers * power_of_two(first) * power_of_two(exponent - first)
    unknown = (coded.scales == E8M0_NAN)[..., None]
    return jnp.where(unknown, jnp.nan, numbers).reshape(coded.elements.shape)


def numbers_of(elements: jax.Array, form: BlockFormat) -> jax.Array:
    """Float32 numbers of elements, without their scale."""
    return decode_float(elements, form.element) if form.element_format else elements.astype(jnp.float32) * (1 / 64)
