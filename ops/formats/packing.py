"""Codes of less than eight bits in bytes: code i takes the bits from i * bits on, the lowest bit of a byte first.

So the first of two 4-bit codes is the low nibble, and four 6-bit codes fill three bytes. The OCP specification
leaves the order open, this is the usual one; GGUF blocks have orders of their own (`gguf/`).
"""

import jax
import jax.numpy as jnp
import numpy as np

from ..shapes import shaped
from .checks import checked_codes


def pack_ref(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes [..., n] below 2^bits -> uint8 [..., n * bits / 8], by definition: one long number, cut into bytes."""
    codes = checked_codes("pack_ref", codes, bits)
    n_bytes = packed_size("pack_ref", codes.shape, bits)
    rows = [
        sum(int(code) << (i * bits) for i, code in enumerate(row)).to_bytes(n_bytes, "little")
        for row in codes.reshape(-1, codes.shape[-1])
    ]
    return np.frombuffer(b"".join(rows), np.uint8).reshape(*codes.shape[:-1], n_bytes)


def unpack_ref(data: np.ndarray, bits: int) -> np.ndarray:
    """uint8 [..., n * bits / 8] -> codes uint8 [..., n]."""
    data = np.asarray(data)
    n = unpacked_size("unpack_ref", data.shape, bits)
    if data.dtype != np.uint8:
        raise ValueError(f"unpack_ref: data is {data.dtype}, expected uint8")
    rows = [int.from_bytes(row.tobytes(), "little") for row in data.reshape(-1, data.shape[-1])]
    codes = [[row >> (i * bits) & ((1 << bits) - 1) for i in range(n)] for row in rows]
    return np.array(codes, np.uint8).reshape(*data.shape[:-1], n)


@shaped("codes: ... int")
def pack(codes: jax.Array, bits: int) -> jax.Array:
    """As `pack_ref`; bits beyond a code's are ignored, so that int8 codes may be given."""
    n_bytes = packed_size("pack", codes.shape, bits)
    single = (codes.astype(jnp.uint8)[..., None] >> jnp.arange(bits, dtype=jnp.uint8)) & 1
    single = single.reshape(*codes.shape[:-1], n_bytes, 8)
    return jnp.sum(single << jnp.arange(8, dtype=jnp.uint8), axis=-1, dtype=jnp.uint8)


@shaped("data: ... int")
def unpack(data: jax.Array, bits: int) -> jax.Array:
    """As `unpack_ref`."""
    n = unpacked_size("unpack", data.shape, bits)
    single = (data[..., None] >> jnp.arange(8, dtype=jnp.uint8)) & 1
    single = single.reshape(*data.shape[:-1], n, bits)
    return jnp.sum(single << jnp.arange(bits, dtype=jnp.uint8), axis=-1, dtype=jnp.uint8)


def sign_extended(codes: jax.Array, bits: int) -> jax.Array:
    """Unpacked codes [...] of symmetric integers as int8: their upper half is negative."""
    shift = np.int8(8 - bits)
    return (codes.astype(jnp.int8) << shift) >> shift


def packed_size(op: str, shape: tuple[int, ...], bits: int) -> int:
    """Bytes of a row of codes; ValueError if they do not come out even."""
    if not shape or not shape[-1] or not 1 <= bits <= 8 or shape[-1] * bits % 8:
        raise ValueError(f"{op}: {bits} bits for codes of shape {list(shape)}, expected rows that fill whole bytes")
    return shape[-1] * bits // 8


def unpacked_size(op: str, shape: tuple[int, ...], bits: int) -> int:
    """Codes of a row of bytes; ValueError if they do not come out even."""
    if not shape or not shape[-1] or not 1 <= bits <= 8 or shape[-1] * 8 % bits:
        raise ValueError(f"{op}: {bits} bits in bytes of shape {list(shape)}, expected rows that hold whole codes")
    return shape[-1] * 8 // bits
