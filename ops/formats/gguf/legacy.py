"""Q4_0, Q4_1, Q5_0, Q5_1, Q8_0: blocks of 32 with one scale, rounded as ggml rounds them (layouts in `ref.py`).

    Q4_0, Q5_0   x = d (q - 8), d (q - 16)   the number of largest magnitude gets code 0
    Q4_1, Q5_1   x = d q + m                 m is the smallest number, and the largest gets the last code
    Q8_0         x = d q                     the largest magnitude gets 127 or -127

Codes are chosen by the float32 scale, of which the file keeps only a float16. Halves round up, in Q8_0 away from
zero. All these formulas and their order in float32 are those of `quantize_row_*_ref` in ggml-quants.c.
"""

import numpy as np

from .bits import pack, read_f16, reciprocal, round_away, unpack, write_f16


def decode_q4_0(blocks: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 18] -> float32 [blocks, 32]."""
    d, q = np.split(blocks, [2], axis=1)
    return (unpack(q, 16, 4).view(np.int8) - np.int8(8)) * read_f16(d)


def encode_q4_0(x: np.ndarray) -> np.ndarray:
    """float32 [blocks, 32] -> uint8 [blocks, 18]."""
    d, q = around_zero(x, 16)
    return np.concatenate([write_f16(d), pack(q, 16, 4)], axis=1)


def decode_q5_0(blocks: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 22] -> float32 [blocks, 32]."""
    d, high, low = np.split(blocks, [2, 6], axis=1)
    q = unpack(low, 16, 4) | unpack(high, 1, 1) << 4
    return (q.view(np.int8) - np.int8(16)) * read_f16(d)


def encode_q5_0(x: np.ndarray) -> np.ndarray:
    """float32 [blocks, 32] -> uint8 [blocks, 22]."""
    d, q = around_zero(x, 32)
    return np.concatenate([write_f16(d), pack(q >> 4, 1, 1), pack(q, 16, 4)], axis=1)


def decode_q4_1(blocks: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 20] -> float32 [blocks, 32]."""
    d, m, q = np.split(blocks, [2, 4], axis=1)
    x = unpack(q, 16, 4) * read_f16(d)
    x += read_f16(m)
    return x


def encode_q4_1(x: np.ndarray) -> np.ndarray:
    """float32 [blocks, 32] -> uint8 [blocks, 20]."""
    d, m, q = from_least(x, 16)
    return np.concatenate([write_f16(d), write_f16(m), pack(q, 16, 4)], axis=1)


def decode_q5_1(blocks: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 24] -> float32 [blocks, 32]."""
    d, m, high, low = np.split(blocks, [2, 4, 8], axis=1)
    x = (unpack(low, 16, 4) | unpack(high, 1, 1) << 4) * read_f16(d)
    x += read_f16(m)
    return x


def encode_q5_1(x: np.ndarray) -> np.ndarray:
    """float32 [blocks, 32] -> uint8 [blocks, 24]."""
    d, m, q = from_least(x, 32)
    return np.concatenate([write_f16(d), write_f16(m), pack(q >> 4, 1, 1), pack(q, 16, 4)], axis=1)


def decode_q8_0(blocks: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 34] -> float32 [blocks, 32]."""
    d, q = np.split(blocks, [2], axis=1)
    return q.view(np.int8) * read_f16(d)


def encode_q8_0(x: np.ndarray) -> np.ndarray:
    """float32 [blocks, 32] -> uint8 [blocks, 34]."""
    d = np.max(np.abs(x), axis=1, keepdims=True) / 127
    q = round_away(x * reciprocal(d)).astype(np.int8)
    return np.concatenate([write_f16(d), q.view(np.uint8)], axis=1)


def around_zero(x: np.ndarray, codes: int) -> tuple[np.ndarray, np.ndarray]:
    """The scale [blocks, 1] that puts the largest magnitude (of several the first) at code 0, and codes uint8."""
    first = np.argmax(np.abs(x), axis=1, keepdims=True)
    d = np.take_along_axis(x, first, axis=1) / -(codes // 2)
    return d, whole(x * reciprocal(d) + np.float32(codes // 2 + 0.5), codes)


def from_least(x: np.ndarray, codes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The scale [blocks, 1] that spreads the codes over the block's range, its least number, and codes uint8."""
    m = np.min(x, axis=1, keepdims=True)
    d = (np.max(x, axis=1, keepdims=True) - m) / (codes - 1)
    return d, m, whole((x - m) * reciprocal(d) + np.float32(0.5), codes)


def whole(y: np.ndarray, codes: int) -> np.ndarray:
    """Whole parts of y >= 0 as uint8 below `codes`; 0 of what is not finite, where the scale had no reciprocal."""
    return np.minimum(np.where(np.isfinite(y), y, 0).astype(np.uint8), codes - 1)
