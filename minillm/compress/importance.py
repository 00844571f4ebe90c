"""Importance: scales at which errors cost least where the inputs are large.

An error in a weight reaches the output times its input. So its square is to count as much as the squares of that
input sum up to over a text, which is what the importance matrices of llama.cpp hold; correlations are left out.
"""

from typing import TypeGuard

import numpy as np

from ..ops import INTS, encode_gguf, encode_ints_ref
from ..ops.formats.gguf.tensor import gguf_type
from ..ops.formats.integers_ref import CodedInts
from ..quant.storage import GGUF, Ints, Parts, Storage, packed_codes

LEAST = np.float32(1e-4)  # what a column counts at least, of their mean: another text may bring its input
PIECE = 1 << 18  # numbers worked on at once: a search over more would fall out of the cache


def weighs(storage: Storage | None) -> TypeGuard[Ints | GGUF]:
    """Whether a storage leaves a choice of scales."""
    return isinstance(storage, Ints) or (isinstance(storage, GGUF) and gguf_type(storage.type).weighs)


def weighed(w: np.ndarray, squares: np.ndarray, storage: Ints | GGUF) -> Parts:
    """The parts of a matrix f32 [rows, columns], of columns whose inputs' squares sum up to f32 [columns]."""
    if isinstance(storage, Ints):
        return int_parts(searched(w, squares, storage), storage)
    return (encode_gguf(w, storage.type, importance_of(squares)),)


def importance_of(squares: np.ndarray) -> np.ndarray:
    """What the squared errors of columns f32 [columns] count."""
    return np.maximum(squares, LEAST * squares.mean())


def searched(w: np.ndarray, squares: np.ndarray, storage: Ints) -> CodedInts:
    """As `weighed` in integers, not packed: `encode_ints_ref` with scales by `mse`, a few rows at a time."""
    pieces, height, importance = [], max(PIECE // w.shape[1], 1), importance_of(squares)
    for first in range(0, len(w), height):
        rows = w[first : first + height]
        options = {"group": storage.group, "affine": storage.affine}
        pieces.append(encode_ints_ref(rows, storage.format, scale="mse", importance=importance, **options))
    return CodedInts(*(None if part[0] is None else np.concatenate(part) for part in zip(*pieces, strict=True)))


def int_parts(coded: CodedInts, storage: Ints) -> Parts:
    """Codes and what belongs to them as `Ints` keeps them."""
    codes = packed_codes(coded.codes, INTS[storage.format].bits)
    return (codes, coded.scales) if coded.zeros is None else (codes, coded.scales, coded.zeros)
