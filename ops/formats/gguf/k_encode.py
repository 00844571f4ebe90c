"""Encoding the K types: scales by `search.py`, and where the bits go (layouts in `ref.py`, formulas in `k.py`)."""

import numpy as np

from .bits import pack, write_f16
from .k import pack_scales
from .search import Codes, fit_lines, fit_scales, in_groups


def encode_q2_k(x: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """float32 [blocks, 256] -> uint8 [blocks, 84]."""
    x, w = in_groups(x, importance, 16)
    d, s, m, q = fit_lines(x, w, Codes(0, 3, 0.6), Codes(0, 15, 2))
    scales = as_bytes(s) | as_bytes(m) << 4
    return np.concatenate([scales, pack(q, 32, 2), write_f16(d)], axis=1)


def encode_q3_k(x: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """float32 [blocks, 256] -> uint8 [blocks, 110]."""
    x, w = in_groups(x, importance, 16)
    d, s, q = fit_scales(x, w, Codes(-4, 3, 0.8), Codes(-32, 31, 2))
    s, q = as_bytes(s + 32), as_bytes(q + 4)
    return np.concatenate(
        [pack(q >> 2, 32, 1), pack(q, 32, 2), pack(s, 8, 4), pack(s >> 4, 4, 2), write_f16(d)], axis=1
    )


def encode_q4_k(x: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """float32 [blocks, 256] -> uint8 [blocks, 144]."""
    d, s, m, q = fit_k(x, importance, 15)
    return np.concatenate([write_f16(d), pack_scales(s, m), pack(q, 32, 4)], axis=1)


def encode_q5_k(x: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """float32 [blocks, 256] -> uint8 [blocks, 176]."""
    d, s, m, q = fit_k(x, importance, 31)
    return np.concatenate([write_f16(d), pack_scales(s, m), pack(q >> 4, 32, 1), pack(q, 32, 4)], axis=1)


def encode_q6_k(x: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """float32 [blocks, 256] -> uint8 [blocks, 210]."""
    x, w = in_groups(x, importance, 16)
    d, s, q = fit_scales(x, w, Codes(-32, 31, 1), Codes(-128, 127, 2))
    q = as_bytes(q + 32)
    return np.concatenate(
        [pack(q, 64, 4), pack(q >> 4, 32, 2), s.astype(np.int8).view(np.uint8), write_f16(d)], axis=1
    )


def fit_k(x: np.ndarray, importance: np.ndarray | None, most: int) -> tuple[np.ndarray, ...]:
    """d and dmin, and the bytes s, m and q of Q4_K and Q5_K, which differ in their largest code."""
    x, w = in_groups(x, importance, 32)
    d, s, m, q = fit_lines(x, w, Codes(0, most, 0.6), Codes(0, 63, 2))
    return d, as_bytes(s), as_bytes(m), as_bytes(q)


def as_bytes(whole: np.ndarray) -> np.ndarray:
    """Float32 whole numbers [blocks, ...] -> uint8 [blocks, n]."""
    return whole.astype(np.uint8).reshape(len(whole), -1)
