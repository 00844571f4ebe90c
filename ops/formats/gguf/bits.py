"""Numbers of a few bits in bytes, and float16 in two: what all GGUF blocks are made of.

A run of n bytes holds its first n numbers in the lowest bits of the n bytes, its next n numbers in the bits above,
and so on. So 16 bytes of 4-bit numbers are one run of 16 (value j and value j + 16 share byte j), while in runs
of one byte neighbours share a byte.
"""

import numpy as np


def unpack(packed: np.ndarray, run: int, bits: int) -> np.ndarray:
    """Numbers of 1, 2 or 4 bits from runs of `run` bytes: uint8 [blocks, n] -> uint8 [blocks, 8 n / bits]."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    runs = packed.reshape(len(packed), -1, 1, run)
    return ((runs >> shifts) & np.uint8((1 << bits) - 1)).reshape(len(packed), -1)


def pack(numbers: np.ndarray, run: int, bits: int) -> np.ndarray:
    """The bytes that `unpack` reads; of larger numbers only the lowest bits are kept."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    fields = numbers.astype(np.uint8).reshape(len(numbers), -1, 8 // bits, run) & np.uint8((1 << bits) - 1)
    return np.bitwise_or.reduce(fields << shifts, axis=-2).reshape(len(numbers), -1)


def read_f16(stored: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 2 n] -> float32 [blocks, n]."""
    return np.ascontiguousarray(stored).view("<f2").astype(np.float32)


def write_f16(x: np.ndarray) -> np.ndarray:
    """float32 [blocks, n] -> uint8 [blocks, 2 n], to nearest even; beyond 65504 infinity."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(x).astype("<f2").view(np.uint8)


def reciprocal(d: np.ndarray) -> np.ndarray:
    """1 / d, and 0 of 0; infinite where d is below 2^-128."""
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(d == 0, np.float32(0), 1 / d)


def nearest_f16(x: np.ndarray) -> np.ndarray:
    """Float32 x, rounded to the nearest finite number that float16 holds."""
    return np.clip(x, -65504, 65504).astype(np.float16).astype(np.float32)


def round_away(y: np.ndarray) -> np.ndarray:
    """Float32 y to the nearest integer, halves away from zero; 0 of what is not finite."""
    size = np.abs(np.where(np.isfinite(y), y, 0))
    low = np.floor(size)
    return np.copysign(low + (size - low >= 0.5), y)
