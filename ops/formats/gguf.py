"""GGUF tensor types: from the bytes of a file to float32, a whole tensor at a time (layouts in `ref.py`).

The table `GGUF_TYPES` is keyed by the type number written in the file. Products and sums are rounded once
each in float32, in the order of the formula, which is what the format's own library does: results are equal
bit for bit.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


def decode_f32(blocks: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 4] -> float32 [blocks, 1]."""
    return blocks.view("<f4")


def decode_f16(blocks: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 2] -> float32 [blocks, 1]."""
    return blocks.view("<f2").astype(np.float32)


def decode_bf16(blocks: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 2] -> float32 [blocks, 1]: the bits become the upper half of a float32."""
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


def decode_q8_0(blocks: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 34] -> float32 [blocks, 32]."""
    d = blocks[:, :2].copy().view("<f2").astype(np.float32)
    return blocks[:, 2:].view(np.int8) * d


def decode_q4_1(blocks: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 20] -> float32 [blocks, 32]."""
    d, m = np.split(blocks[:, :4].copy().view("<f2").astype(np.float32), 2, axis=1)
    x = np.empty((len(blocks), 32), np.float32)
    np.multiply(blocks[:, 4:] & 15, d, out=x[:, :16])
    np.multiply(blocks[:, 4:] >> 4, d, out=x[:, 16:])
    x += m
    return x


class GGUFType(NamedTuple):
    """How one type is stored: `values` in a block of `size` bytes, and the function that decodes blocks."""

    name: str
    values: int
    size: int
    decode: Callable[[np.ndarray], np.ndarray]


GGUF_TYPES = {
    0: GGUFType("F32", 1, 4, decode_f32),
    1: GGUFType("F16", 1, 2, decode_f16),
    3: GGUFType("Q4_1", 32, 20, decode_q4_1),
    8: GGUFType("Q8_0", 32, 34, decode_q8_0),
    30: GGUFType("BF16", 1, 2, decode_bf16),
}
