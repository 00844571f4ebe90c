"""MXFP4 and NVFP4: numbers of four bits (e2m1) with a small floating-point scale (layouts in `ref.py`).

The same formats stand in `blocks.py` as OCP and NVIDIA define them. In GGUF files a few points differ:

    MXFP4   scale 2^(e - 127); the byte 255 is 2^128 and no NaN. Halfway between two numbers the smaller is taken.
            Zero has no sign (nor in NVFP4).
    NVFP4   a scale in e4m3 for each 16 numbers, four of them in a block. Its sign is not looked at; the byte 127 is
            0 and no NaN. The tensor has no scale: the largest number is 6 * 448 and the smallest 2^-10.
"""

import numpy as np

from ..floats_ref import FLOATS, decode_float_ref, magnitudes
from .bits import pack, unpack

E2M1 = decode_float_ref(np.arange(16), "e2m1").astype(np.float32) + 0  # makes -0 a 0
BETWEEN = (E2M1[1:8] + E2M1[:7]) / 2  # halfway from each magnitude to the next
UE4M3 = np.tile(magnitudes(FLOATS["e4m3fn"], np.arange(128)).astype(np.float32), 2)  # of all bytes
UE4M3[127] = 0
UE4M3_BETWEEN = (UE4M3[1:127] + UE4M3[:126]) / 2


def decode_mxfp4(blocks: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 17] -> float32 [blocks, 32]; too large ones are infinite."""
    e, q = np.split(blocks, [1], axis=1)
    with np.errstate(over="ignore"):
        return (2 * E2M1)[unpack(q, 16, 4)] * two_to(e.astype(np.int32) - 128)


def encode_mxfp4(x: np.ndarray) -> np.ndarray:
    """float32 [blocks, 32] -> uint8 [blocks, 17].

    e - 127 is the exponent of the largest magnitude, by the float32 logarithm, less 2; what is then beyond 6
    becomes 6. Below 2^-125 ggml's byte wraps round from 0 to 255: such a block, like one of zeros, is all zeros.
    """
    largest = np.max(np.abs(x), axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        exponent = np.where(largest > 0, np.floor(np.log2(largest)) - 2 + 127, 0).astype(np.int32)
    e = (exponent & 255).astype(np.uint8)
    q = encode_e2m1(x, two_to(e.astype(np.int32) - 127))
    return np.concatenate([e, pack(q, 16, 4)], axis=1)


def decode_nvfp4(blocks: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 36] -> float32 [blocks, 64]."""
    scales, q = np.split(blocks, [4], axis=1)
    return (E2M1[unpack(q, 8, 4)].reshape(-1, 4, 16) * UE4M3[scales][..., None]).reshape(-1, 64)


def encode_nvfp4(x: np.ndarray) -> np.ndarray:
    """float32 [blocks, 64] -> uint8 [blocks, 36].

    A scale is the nearest to a sixth of the largest magnitude of its 16 numbers, of two as near the larger.
    """
    groups = x.reshape(len(x), 4, 16)
    largest = np.max(np.abs(groups), axis=2)
    scales = np.searchsorted(UE4M3_BETWEEN, largest / 6, side="right").astype(np.uint8)
    q = encode_e2m1(groups, UE4M3[scales][..., None])
    return np.concatenate([scales, pack(q.reshape(-1, 64), 8, 4)], axis=1)


def encode_e2m1(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Codes uint8 of the e2m1 nearest to x / scale, of two as near the smaller; of scale 0 all are 0."""
    scale, size = np.where(scale > 0, scale, np.float32(np.inf)), np.abs(x)
    codes = sum((size > half * scale).astype(np.uint8) for half in BETWEEN)  # exact products
    return codes | ((x < 0) & (codes > 0)).astype(np.uint8) << 3


def two_to(exponent: np.ndarray) -> np.ndarray:
    """Float32 2^exponent of integers, exact also where it is subnormal."""
    return np.ldexp(np.float32(1), exponent)
