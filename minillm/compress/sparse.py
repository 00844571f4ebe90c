"""Sparse matrices: which numbers can be zero, and what the others should be then.

    magnitude   the smallest numbers of a matrix go
    wanda       in each row those that move the output least: |w| times the norm of the input that they meet
                (Sun et al. 2023, arXiv:2306.11695)
    sparsegpt   those that cost least once the numbers right of them make up for the loss, as they then do
                (Frantar and Alistarh 2023, arXiv:2301.00774)

A matrix is [out, in] here, so that a row makes one output. Nothing gets smaller or faster by zeros alone: that
takes kernels that skip them. What counts here is what they do to quality.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from ..errors import UserError
from ..quant import Dense, by_place, is_weight
from ..quant.quantised import STAY, Progress
from .calibration import Inputs

BLOCK = 128  # columns in which SparseGPT compares numbers with each other
DAMPING = 0.01  # of the mean input energy, added to that of each channel


def magnitude(w: np.ndarray, inputs: Inputs | None, share: float, group: int | None = None) -> np.ndarray:
    """w [out, in] less the smallest `share`; group is as in `lowest`."""
    size = np.abs(w)
    return np.where(lowest(size, share, group or size.size), np.float32(0), w)


def wanda(w: np.ndarray, inputs: Inputs, share: float, group: int | None = None) -> np.ndarray:
    """w [out, in] less the numbers of each row that move its output least; group is as in `lowest`."""
    moved = np.abs(w) * np.sqrt(np.diagonal(inputs.gram))
    return np.where(lowest(moved, share, group or w.shape[1]), np.float32(0), w)


def sparsegpt(w: np.ndarray, inputs: Inputs, share: float, group: int | None = None) -> np.ndarray:
    """w [out, in] less numbers for which those right of them make up; group is as in `lowest`.

    Column after column, what went leaves an error of the output; the columns to come are moved by the least-squares
    answer to it, which is in the rows of U, where U^T U is the inverse of the inputs' second moments.
    """
    w, u = w.astype(np.float64), inverse_factor(inputs.gram)
    for first in range(0, w.shape[1], group or BLOCK):
        block, rest = slice(first, first + (group or BLOCK)), slice(first + (group or BLOCK), None)
        part, own = w[:, block], u[block, block]
        loss = (part / np.diagonal(own)) ** 2
        gone = lowest(loss, share, group or loss.size)
        errors = np.zeros_like(part)
        for i in range(part.shape[1]):
            errors[:, i] = np.where(gone[:, i], part[:, i], 0) / own[i, i]
            part[:, i:] -= np.outer(errors[:, i], own[i, i:])
        part[gone] = 0  # and not what rounding left of it
        w[:, rest] -= errors @ u[block, rest]
    return w.astype(np.float32)


Method = Callable[[np.ndarray, Any, float, int | None], np.ndarray]
METHODS: dict[str, Method] = {"magnitude": magnitude, "wanda": wanda, "sparsegpt": sparsegpt}


def lowest(scores: np.ndarray, share: float, group: int) -> np.ndarray:
    """Whether each of scores [out, in] is among the lowest `share` of the `group` numbers that it stands with.

    Exactly floor(share * group) of a group are, the first ones of equals. ValueError if the groups do not come out
    even.
    """
    if scores.size % group:
        raise ValueError(f"lowest: {scores.size} numbers are no multiple of a group of {group}")
    order = np.argsort(scores.reshape(-1, group), axis=1, kind="stable")
    found = np.zeros(order.shape, bool)
    np.put_along_axis(found, order[:, : int(share * group)], True, axis=1)
    return found.reshape(scores.shape)


def inverse_factor(gram: np.ndarray) -> np.ndarray:
    """The upper triangle U for which U^T U is the inverse of gram [in, in], damped; float64."""
    energy = np.mean(np.diagonal(gram), dtype=np.float64) or 1.0  # a matrix that never saw an input
    damped = gram + DAMPING * energy * np.eye(len(gram))
    return np.linalg.cholesky(np.linalg.inv(damped)).T


def sparsified(
    model: Any,
    inputs: Mapping[str, Inputs],
    method: str,
    share: float,
    group: int | None = None,
    progress: Progress = lambda *_: None,
) -> Any:
    """The model with zeros in the matrices of its blocks; embedding, head and routers stay whole.

    inputs are those of `calibration`, of which magnitude needs none. With a group of 4 and half of it gone the
    pattern is 2:4. UserError if the method is none, the share is no share, a matrix is not stored as plain numbers,
    or the text that was read has not reached it.
    """
    if method not in METHODS:
        raise UserError(f"method is {method!r}, expected one of {', '.join(METHODS)}")
    if not 0 < share < 1:
        raise UserError(f"sparsity is {share}, expected a share above 0 and below 1")
    leaves, tree = by_place(model)
    weights = [leaf for _, leaf in leaves]
    chosen = [i for i, (place, leaf) in enumerate(leaves) if is_weight(leaf) and is_sparse(place)]
    for done, i in enumerate(chosen, 1):
        place, weight = leaves[i]
        if not isinstance(weight, Dense):
            kind = type(weight).__name__
            raise UserError(f"{place} is stored as {kind}, expected plain numbers: make zeros before quantising")
        if group and weight.shape[0] % group:
            raise UserError(f"{place} has {weight.shape[0]} inputs, expected a multiple of {group}")
        if place not in inputs and method != "magnitude":
            raise UserError(f"{place} has multiplied nothing in the text, which {method} goes by; use magnitude")
        weights[i] = with_zeros(weight, inputs.get(place), METHODS[method], share, group)
        progress("making zeros", done, len(chosen))
    return tree.unflatten(weights)


def is_sparse(place: str) -> bool:
    """Whether the matrix at a place of the model gets zeros."""
    return place.startswith("blocks") and not STAY.search(place)


def with_zeros(weight: Dense, inputs: Inputs | None, method: Method, share: float, group: int | None) -> Dense:
    """One weight, or all matrices of one for experts."""
    w = np.asarray(weight.T.dense(), np.float32)
    if w.ndim == 2:
        return Dense(jax.device_put(method(w, inputs, share, group))).T
    stack = [
        method(one, inputs and Inputs(*(figure[e] for figure in vars(inputs).values())), share, group)
        for e, one in enumerate(w)
    ]
    return Dense(jax.device_put(np.stack(stack))).T
