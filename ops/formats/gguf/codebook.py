"""IQ4_NL and IQ4_XS: codes of four bits that stand for 16 unevenly spaced numbers (layouts in `ref.py`)."""

import numpy as np

from .bits import nearest_f16, pack, read_f16, unpack, write_f16
from .search import Codes, fit_scale, fit_scales, in_groups, inverse

# Denser around zero, where weights are; `kvalues_iq4nl` in ggml-common.h.
LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
# The code of the level nearest to a number y is CODES[floor(2 y) + 254]: halfway marks are multiples of 1/2.
CODES = np.searchsorted((LEVELS[1:] + LEVELS[:-1]) / 2, np.arange(-254, 227) / 2, side="right").astype(np.uint8)


def decode_iq4_nl(blocks: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 18] -> float32 [blocks, 32]."""
    d, q = np.split(blocks, [2], axis=1)
    return LEVELS[unpack(q, 16, 4)] * read_f16(d)


def decode_iq4_xs(blocks: np.ndarray) -> np.ndarray:
    """uint8 [blocks, 136] -> float32 [blocks, 256]."""
    d, high, low, q = np.split(blocks, [2, 4, 8], axis=1)
    s = (unpack(low, 1, 4) | unpack(high, 1, 2) << 4).view(np.int8) - np.int8(32)
    step = (read_f16(d) * s)[..., None]
    return (LEVELS[unpack(q, 16, 4)].reshape(-1, 8, 32) * step).reshape(-1, 256)


def encode_iq4_nl(x: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """float32 [blocks, 32] -> uint8 [blocks, 18]."""
    groups, w = in_groups(x, importance, 32)
    d = nearest_f16(fit_scale(groups, w, Codes(-127, 113, 17, nearest_level))[0][:, 0])
    return np.concatenate([write_f16(d), pack(nearest_code(x * inverse(d)), 16, 4)], axis=1)


def encode_iq4_xs(x: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """float32 [blocks, 256] -> uint8 [blocks, 136]."""
    x, w = in_groups(x, importance, 32)
    d, s, q = fit_scales(x, w, Codes(-127, 113, 17, nearest_level), Codes(-32, 31, 2))
    s, q = (s + 32).astype(np.uint8), nearest_code(q)
    return np.concatenate([write_f16(d), pack(s >> 4, 1, 2), pack(s, 1, 4), pack(q, 16, 4)], axis=1)


def nearest_code(y: np.ndarray) -> np.ndarray:
    """Codes uint8 of the levels nearest to y [...]; halfway the higher one."""
    return CODES[np.clip(np.floor(2 * y) + 254, 0, len(CODES) - 1).astype(np.int16)]


def nearest_level(y: np.ndarray) -> np.ndarray:
    """The levels nearest to y [...]."""
    return LEVELS[nearest_code(y)]
