"""Decoding GGUF blocks in JAX, so that weights may stay as they are in the file (layouts in `ref.py`).

The same formulas as in the NumPy files beside this one, to the bit, as long as results are normal float32 numbers.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ...shapes import shaped
from ..rounding import power_of_two
from .codebook import LEVELS
from .float4 import E2M1, UE4M3
from .tensor import gguf_type
from .ternary import PARTS


@shaped("data: ... int")
def decode_gguf_blocks(data: jax.Array, type: str) -> jax.Array:
    """uint8 [..., bytes] -> float32 [..., n] of the blocks of a type."""
    form = gguf_type(type)
    if data.dtype != jnp.uint8 or not data.ndim or 0 in data.shape or data.shape[-1] % form.size:
        found = f"{data.dtype} of shape {list(data.shape)}"
        wanted = f"uint8, rows of a multiple of {form.size} bytes ({type})"
        raise ValueError(f"decode_gguf_blocks: data is {found}, expected {wanted}")
    return DECODERS[form.name](data.reshape(-1, form.size)).reshape(*data.shape[:-1], -1)


def split(blocks: jax.Array, *sizes: int) -> list[jax.Array]:
    """Parts of so many bytes, and what is left."""
    return jnp.split(blocks, np.cumsum(sizes), axis=1)


def f16(stored: jax.Array) -> jax.Array:
    """uint8 [blocks, 2 n] -> float32 [blocks, n]."""
    pairs = stored.reshape(len(stored), -1, 2)
    return jax.lax.bitcast_convert_type(pairs, jnp.float16).astype(jnp.float32)


def int8(stored: jax.Array) -> jax.Array:
    """The bytes as signed numbers, float32."""
    return jax.lax.bitcast_convert_type(stored, jnp.int8).astype(jnp.float32)


def unpack(packed: jax.Array, run: int, bits: int) -> jax.Array:
    """As `bits.unpack`: numbers of few bits from runs of bytes, uint8."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    runs = packed.reshape(len(packed), -1, 1, run)
    return ((runs >> shifts) & np.uint8((1 << bits) - 1)).reshape(len(packed), -1)


def wide(q: jax.Array, offset: int = 0) -> jax.Array:
    """Codes less an offset, float32."""
    return q.astype(jnp.float32) - offset


def five_bits(low: jax.Array, high: jax.Array, low_run: int, high_run: int) -> jax.Array:
    """Codes of four bits and a fifth."""
    return unpack(low, low_run, 4) | unpack(high, high_run, 1) << 4


def two_levels(d: jax.Array, s: jax.Array, q: jax.Array) -> jax.Array:
    """d s q, of d [blocks, 1], s [blocks, groups], q [blocks, values]."""
    return ((d * s)[..., None] * q.reshape(*s.shape, -1)).reshape(q.shape)


def less_minimum(d: jax.Array, s: jax.Array, m: jax.Array, q: jax.Array) -> jax.Array:
    """d s q - dmin m, of d and dmin [blocks, 2] as bytes."""
    d, dmin = jnp.split(f16(d), 2, axis=1)
    x = (d * wide(s))[..., None] * wide(q).reshape(*s.shape, -1) - (dmin * wide(m))[..., None]
    return x.reshape(q.shape)


def six_bits(stored: jax.Array) -> tuple[jax.Array, jax.Array]:
    """As `k.unpack_scales`."""
    s, m, low = split(stored, 4, 4)
    later_s, later_m = low & 15 | s >> 6 << 4, low >> 4 | m >> 6 << 4
    return jnp.concatenate([s & 63, later_s], axis=1), jnp.concatenate([m & 63, later_m], axis=1)


def f32(blocks: jax.Array) -> jax.Array:
    """F32."""
    return jax.lax.bitcast_convert_type(blocks, jnp.float32)


def bf16(blocks: jax.Array) -> jax.Array:
    """BF16."""
    return jax.lax.bitcast_convert_type(blocks, jnp.bfloat16).astype(jnp.float32)


def q4_0(blocks: jax.Array) -> jax.Array:
    """Q4_0."""
    d, q = split(blocks, 2)
    return wide(unpack(q, 16, 4), 8) * f16(d)


def q4_1(blocks: jax.Array) -> jax.Array:
    """Q4_1."""
    d, m, q = split(blocks, 2, 2)
    return wide(unpack(q, 16, 4)) * f16(d) + f16(m)


def q5_0(blocks: jax.Array) -> jax.Array:
    """Q5_0."""
    d, high, low = split(blocks, 2, 4)
    return wide(five_bits(low, high, 16, 1), 16) * f16(d)


def q5_1(blocks: jax.Array) -> jax.Array:
    """Q5_1."""
    d, m, high, low = split(blocks, 2, 2, 4)
    return wide(five_bits(low, high, 16, 1)) * f16(d) + f16(m)


def q8_0(blocks: jax.Array) -> jax.Array:
    """Q8_0."""
    d, q = split(blocks, 2)
    return int8(q) * f16(d)


def q2_k(blocks: jax.Array) -> jax.Array:
    """Q2_K."""
    scales, q, d = split(blocks, 16, 64)
    return less_minimum(d, scales & 15, scales >> 4, unpack(q, 32, 2))


def q3_k(blocks: jax.Array) -> jax.Array:
    """Q3_K."""
    high, low, scales, d = split(blocks, 32, 64, 12)
    s = unpack(scales[:, :8], 8, 4) | unpack(scales[:, 8:], 4, 2) << 4
    q = unpack(low, 32, 2) | unpack(high, 32, 1) << 2
    return two_levels(f16(d), wide(s, 32), wide(q, 4))


def q4_k(blocks: jax.Array) -> jax.Array:
    """Q4_K."""
    d, scales, q = split(blocks, 4, 12)
    return less_minimum(d, *six_bits(scales), unpack(q, 32, 4))


def q5_k(blocks: jax.Array) -> jax.Array:
    """Q5_K."""
    d, scales, high, low = split(blocks, 4, 12, 32)
    return less_minimum(d, *six_bits(scales), five_bits(low, high, 32, 32))


def q6_k(blocks: jax.Array) -> jax.Array:
    """Q6_K."""
    low, high, s, d = split(blocks, 128, 64, 16)
    q = unpack(low, 64, 4) | unpack(high, 32, 2) << 4
    return two_levels(f16(d), int8(s), wide(q, 32))


def tq1_0(blocks: jax.Array) -> jax.Array:
    """TQ1_0."""
    *parts, d = split(blocks, 32, 16, 4)
    powers = np.array([1, 3, 9, 27, 81], np.uint8)[:, None]
    digits = []
    for part, (run, count) in zip(parts, PARTS, strict=True):
        left = part.reshape(-1, 1, run) * powers[:count]
        digits.append((left.astype(jnp.uint16) * 3 >> 8).reshape(len(blocks), -1))
    return wide(jnp.concatenate(digits, axis=1), 1) * f16(d)


def tq2_0(blocks: jax.Array) -> jax.Array:
    """TQ2_0."""
    q, d = split(blocks, 64)
    return wide(unpack(q, 32, 2), 1) * f16(d)


def iq4_nl(blocks: jax.Array) -> jax.Array:
    """IQ4_NL."""
    d, q = split(blocks, 2)
    return jnp.asarray(LEVELS)[unpack(q, 16, 4)] * f16(d)


def iq4_xs(blocks: jax.Array) -> jax.Array:
    """IQ4_XS."""
    d, high, low, q = split(blocks, 2, 2, 4)
    s = unpack(low, 1, 4) | unpack(high, 1, 2) << 4
    return two_levels(f16(d), wide(s, 32), jnp.asarray(LEVELS)[unpack(q, 16, 4)])


def mxfp4(blocks: jax.Array) -> jax.Array:
    """MXFP4: the power of two in two factors, as 2^128 is none of float32."""
    e, q = split(blocks, 1)
    exponent = e.astype(jnp.int32) - 127
    first = exponent // 2
    return jnp.asarray(E2M1)[unpack(q, 16, 4)] * power_of_two(first) * power_of_two(exponent - first)


def nvfp4(blocks: jax.Array) -> jax.Array:
    """NVFP4."""
    scales, q = split(blocks, 4)
    numbers = jnp.asarray(E2M1)[unpack(q, 8, 4)].reshape(-1, 4, 16)
    return (numbers * jnp.asarray(UE4M3)[scales][..., None]).reshape(-1, 64)


DECODERS = {
    "F32": f32,
    "F16": f16,
    "BF16": bf16,
    "Q4_0": q4_0,
    "Q4_1": q4_1,
    "Q5_0": q5_0,
    "Q5_1": q5_1,
    "Q8_0": q8_0,
    "Q2_K": q2_k,
    "Q3_K": q3_k,
    "Q4_K": q4_k,
    "Q5_K": q5_k,
    "Q6_K": q6_k,
    "TQ1_0": tq1_0,
    "TQ2_0": tq2_0,
    "IQ4_NL": iq4_nl,
    "IQ4_XS": iq4_xs,
    "MXFP4": mxfp4,
    "NVFP4": nvfp4,
}
