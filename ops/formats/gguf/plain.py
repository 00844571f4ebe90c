"""F32, F16 and BF16: a block is one number."""

import numpy as np


def decode_f32(blocks: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 4] -> float32 [blocks, 1]."""
    return blocks.view("<f4")


def encode_f32(x: np.ndarray) -> np.ndarray:
    """float32 [blocks, 1] -> uint8 [blocks, 4]."""
    return x.astype("<f4").view(np.uint8)


def decode_f16(blocks: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 2] -> float32 [blocks, 1]."""
    return blocks.view("<f2").astype(np.float32)


def encode_f16(x: np.ndarray) -> np.ndarray:
    """float32 [blocks, 1] -> uint8 [blocks, 2], to nearest even."""
    return x.astype("<f2").view(np.uint8)


def decode_bf16(blocks: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 2] -> float32 [blocks, 1]: the bits become the upper half of a float32."""
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


def encode_bf16(x: np.ndarray) -> np.ndarray:
    """float32 [blocks, 1] -> uint8 [blocks, 2], to nearest even: a carry into the upper half decides."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").view(np.uint8)
