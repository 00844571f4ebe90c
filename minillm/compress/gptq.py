"""GPTQ: round a matrix column by column, and let the columns to come make up for the errors so far.

Frantar et al., arXiv:2210.17323; in the form of Chee et al., arXiv:2307.13304 (LDLQ, shown there to be the same).

With inputs x, a row w of the matrix and its rounded self q, the error of the product over the whole text is

    Σ ((w - q) x)²  =  (w - q) G (w - q)^T            G = Σ x^T x

Write G = A A^T with A upper triangular, and e = w - q. Then it is |e A|², a sum of one square for each column i:

    Σ_i A_ii² (e_i + Σ_{j<i} e_j F_ji)²               F_ji = A_ji / A_ii

The i-th holds no later errors than e_i. So columns are rounded in turn, each to the code nearest to
w_i + Σ_{j<i} e_j F_ji, which makes its square as small as it can be. Rounding to nearest is the case F = 0.

Columns of the largest inputs go first, as the paper's authors do since (act-order): what comes later is bent more.
Scales are found before anything is bent, those at which the matrix as it is loses least (`importance.py`), so that
groups stay where they are.
"""

import numpy as np

from ..ops import INTS
from ..ops.formats.integers_ref import CodedInts
from ..ops.formats.rounding import divided_ref, normal_ref
from ..quant.storage import Ints, Parts
from .importance import int_parts, searched

DAMPING = 0.01  # of the mean of G's diagonal, added to it: few rows do not tell all directions
BLOCK = 128  # columns after which the sum over errors is one product of matrices


def gptq_parts(w: np.ndarray, gram: np.ndarray, storage: Ints) -> Parts:
    """The parts of a matrix w f32 [rows, columns] in integers, for inputs with gram f32 [columns, columns].

    ValueError if w is not finite, LinAlgError if the gram matrix is not that of any inputs.
    """
    squares = np.diag(gram)
    _, scales, zeros = searched(w, squares, storage)
    order = np.argsort(-squares, kind="stable")
    factor = feedback(gram[np.ix_(order, order)])
    size = w.shape[1] // scales.shape[1]
    targets = np.ascontiguousarray(normal_ref(w).T[order])  # columns are rows from here on
    codes = np.empty(targets.shape, np.uint8 if storage.affine else np.int8)
    errors = np.zeros_like(targets)
    for first in range(0, len(order), BLOCK):
        block = slice(first, first + BLOCK)
        columns = targets[block] + factor[:first, block].T @ errors[:first]
        for i, column in enumerate(columns, first):
            column = column + factor[first:i, i] @ errors[first:i]
            group = order[i] // size
            codes[order[i]], nearest = rounded(column, scales[:, group], zeros, group, storage)
            errors[i] = targets[i] - nearest
    return int_parts(CodedInts(np.ascontiguousarray(codes.T), scales, zeros), storage)


def feedback(gram: np.ndarray) -> np.ndarray:
    """F f32 [columns, columns], of which only what is above the diagonal is used."""
    damped = gram.astype(np.float64)
    damped[np.diag_indices_from(damped)] += DAMPING * np.mean(np.diag(damped))
    a = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    return (a / np.diag(a)).astype(np.float32)


def rounded(
    column: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, group: int, storage: Ints
) -> tuple[np.ndarray, np.ndarray]:
    """Codes of a column f32 [rows] with scales f32 [rows], and the numbers they stand for."""
    form = INTS[storage.format]
    steps = np.rint(divided_ref(column[:, None], scales)[:, 0])
    if zeros is None:
        codes = np.clip(steps, -form.largest, form.largest)
        return codes, codes * scales
    zero = zeros[:, group].astype(np.float32)
    codes = np.clip(steps + zero, 0, 2**form.bits - 1)
    return codes, (codes - zero) * scales
