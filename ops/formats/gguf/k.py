"""The K types: 256 numbers with two levels of scales (layouts in `ref.py`).

    Q3_K, Q6_K          x = d s q               s of 16 numbers, an integer of 6 or 8 bits with a sign
    Q2_K, Q4_K, Q5_K    x = d s q - dmin m      s and m of 16 or 32 numbers, of 4 or 6 bits without a sign

d and dmin are float16 and belong to the block. Encoding is in `k_encode.py`.
"""

import numpy as np

from .bits import read_f16, unpack


def decode_q2_k(blocks: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 84] -> float32 [blocks, 256]."""
    scales, q, d = np.split(blocks, [16, 80], axis=1)
    return with_minimum(d, scales & 15, scales >> 4, unpack(q, 32, 2))


def decode_q3_k(blocks: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 110] -> float32 [blocks, 256]."""
    high, low, scales, d = np.split(blocks, [32, 96, 108], axis=1)
    s = unpack(scales[:, :8], 8, 4) | unpack(scales[:, 8:], 4, 2) << 4
    q = unpack(low, 32, 2) | unpack(high, 32, 1) << 2
    return signed(d, s.view(np.int8) - np.int8(32), q.view(np.int8) - np.int8(4))


def decode_q4_k(blocks: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 144] -> float32 [blocks, 256]."""
    d, scales, q = np.split(blocks, [4, 16], axis=1)
    return with_minimum(d, *unpack_scales(scales), unpack(q, 32, 4))


def decode_q5_k(blocks: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 176] -> float32 [blocks, 256]."""
    d, scales, high, low = np.split(blocks, [4, 16, 48], axis=1)
    return with_minimum(d, *unpack_scales(scales), unpack(low, 32, 4) | unpack(high, 32, 1) << 4)


def decode_q6_k(blocks: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 210] -> float32 [blocks, 256]."""
    low, high, s, d = np.split(blocks, [128, 192, 208], axis=1)
    q = unpack(low, 64, 4) | unpack(high, 32, 2) << 4
    return signed(d, s.view(np.int8), q.view(np.int8) - np.int8(32))


def signed(d: np.ndarray, s: np.ndarray, q: np.ndarray) -> np.ndarray:
    """x = d s q, of the bytes of d, s [blocks, groups] and q [blocks, 256]: no product is ever rounded."""
    step = (read_f16(d) * s)[..., None]
    return (step * q.reshape(*s.shape, -1)).reshape(q.shape)


def with_minimum(d: np.ndarray, s: np.ndarray, m: np.ndarray, q: np.ndarray) -> np.ndarray:
    """x = d s q - dmin m, of the bytes of d and dmin: the difference is all that is rounded."""
    d, dmin = np.split(read_f16(d), 2, axis=1)
    x = q.reshape(*s.shape, -1) * (d * s)[..., None]
    x -= (dmin * m)[..., None]
    return x.reshape(q.shape)


def unpack_scales(stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """s and m of 8 groups, uint8 [blocks, 8] each, of the 12 bytes that they fill with 6 bits each.

    Bytes 0 … 3 hold s of groups 0 … 3, bytes 4 … 7 their m, bytes 8 … 11 the low four bits of s and m of groups
    4 … 7, whose upper two lie in the upper two of bytes 0 … 3 and 4 … 7.
    """
    s, m, low = np.split(stored, 3, axis=1)
    later_s, later_m = low & 15 | s >> 6 << 4, low >> 4 | m >> 6 << 4
    return np.concatenate([s & 63, later_s], axis=1), np.concatenate([m & 63, later_m], axis=1)


def pack_scales(s: np.ndarray, m: np.ndarray) -> np.ndarray:
    """The 12 bytes that `unpack_scales` reads."""
    later_s, later_m = s[:, 4:], m[:, 4:]
    low = later_s & 15 | (later_m & 15) << 4
    return np.concatenate([s[:, :4] | later_s >> 4 << 6, m[:, :4] | later_m >> 4 << 6, low], axis=1)
