"""Integers with a scale, in JAX (definitions in `integers_ref.py`)."""

import jax
import jax.numpy as jnp
import numpy as np

from ..shapes import shaped
from .checks import check_narrow
from .integers_ref import CodedInts, IntFormat, check_coded, in_groups, int_format
from .rounding import divided, largest_of, normal


@shaped("x: ... float")
def encode_ints(x: jax.Array, format: str, *, group: int | None = None, affine: bool = False) -> CodedInts:
    """As `encode_ints_ref` with its scale `absmax`; numbers that are not finite give no error and no sense."""
    check_narrow("encode_ints", x)
    form, x = int_format(format, affine), normal(x.astype(jnp.float32))
    groups = in_groups("encode_ints", x, group)
    scales, origin = first_scale(groups, form, affine)
    steps = jnp.rint(divided(groups, scales))
    if not affine:
        codes = jnp.clip(steps, -form.largest, form.largest).astype(jnp.int8)
        return CodedInts(codes.reshape(x.shape), scales)
    top = 2**form.bits - 1
    zeros = jnp.clip(jnp.rint(divided(-origin[..., None], scales))[..., 0], 0, top)
    codes = jnp.clip(steps + zeros[..., None], 0, top).astype(jnp.uint8)
    return CodedInts(codes.reshape(x.shape), scales, zeros.astype(jnp.uint8))


def first_scale(groups: jax.Array, form: IntFormat, affine: bool) -> tuple[jax.Array, jax.Array]:
    """Scales that reach all numbers of a group, and the least number that is to be reached."""
    if form.name == "ternary":
        mean = halving_sum(jnp.abs(groups)) * np.float32(1 / groups.shape[-1])
        return normal(mean), jnp.zeros_like(mean)
    if affine:
        least, most = jnp.minimum(groups.min(-1), 0), jnp.maximum(groups.max(-1), 0)
        return normal((most - least) * np.float32(1 / (2**form.bits - 1))), least
    largest = largest_of(groups)
    return normal(largest * np.float32(1 / form.largest)), jnp.zeros_like(largest)


def decode_ints(coded: CodedInts) -> jax.Array:
    """Float32 numbers [..., n]: those of `decode_ints_ref` rounded once, but 0 below the normal numbers."""
    check_coded("decode_ints", coded)
    groups = coded.codes.reshape(*coded.scales.shape, -1).astype(jnp.int32)
    zeros = 0 if coded.zeros is None else coded.zeros[..., None].astype(jnp.int32)
    scales = coded.scales[..., None].astype(jnp.float32)
    return ((groups - zeros).astype(jnp.float32) * scales).reshape(coded.codes.shape)


def halving_sum(x: jax.Array) -> jax.Array:
    """Sum over the last axis, zeros filling it up to a power of two: halves are added until one number is left."""
    width = 1 << (x.shape[-1] - 1).bit_length()
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])])
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    return x[..., 0]
