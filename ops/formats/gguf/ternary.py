"""TQ1_0 and TQ2_0: 256 numbers that are d, 0 or -d (layouts in `ref.py`).

TQ2_0 spends two bits on each. TQ1_0 puts five into a byte, as 3^5 = 243 < 256: the byte is the number
t0 3^4 + t1 3^3 + … + t4 on the scale of 256 instead of 243, rounded up. Times 3, its overflow beyond the byte is
t0; what is left in the byte, times 3, overflows by t1, and so on: digits come out by multiplying alone.
"""

import numpy as np

from .bits import pack, read_f16, reciprocal, round_away, unpack, write_f16

PARTS = ((32, 5), (16, 5), (4, 4))  # of a TQ1_0 block: runs of so many bytes, with so many digits in each


def decode_tq1_0(blocks: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 54] -> float32 [blocks, 256]."""
    *parts, d = np.split(blocks, [32, 48, 52], axis=1)
    powers = np.array([1, 3, 9, 27, 81], np.uint8)[:, None]
    digits = []
    for part, (run, count) in zip(parts, PARTS, strict=True):
        left = part.reshape(-1, 1, run) * powers[:count]  # what is left in the byte: uint8 drops the overflow
        digits.append((left.astype(np.uint16) * 3 >> 8).reshape(len(blocks), -1))
    return (np.concatenate(digits, axis=1).astype(np.int8) - np.int8(1)) * read_f16(d)


def encode_tq1_0(x: np.ndarray) -> np.ndarray:
    """float32 [blocks, 256] -> uint8 [blocks, 54]."""
    d, digits = ternary(x)
    powers = np.array([81, 27, 9, 3, 1], np.uint16)[:, None]
    stored = []
    for part, (run, count) in zip(np.split(digits, [160, 240], axis=1), PARTS, strict=True):
        number = (part.reshape(-1, count, run) * powers[:count]).sum(axis=1, dtype=np.uint16)
        stored.append(((number * 256 + 242) // 243).astype(np.uint8))  # rounded up
    return np.concatenate([*stored, write_f16(d)], axis=1)


def decode_tq2_0(blocks: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 66] -> float32 [blocks, 256]."""
    q, d = np.split(blocks, [64], axis=1)
    return (unpack(q, 32, 2).view(np.int8) - np.int8(1)) * read_f16(d)


def encode_tq2_0(x: np.ndarray) -> np.ndarray:
    """float32 [blocks, 256] -> uint8 [blocks, 66]."""
    d, digits = ternary(x)
    return np.concatenate([pack(digits, 32, 2), write_f16(d)], axis=1)


def ternary(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest magnitude d [blocks, 1], and digits uint8: 0, 1, 2 for -d, 0, d, whichever is nearest."""
    d = np.max(np.abs(x), axis=1, keepdims=True)
    return d, (round_away(x * reciprocal(d)) + 1).astype(np.uint8)
