"""GPTQ is the paper's algorithm, and rounding to nearest where inputs have nothing to do with each other."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.compress import gptq
from minillm.compress.gptq import DAMPING, gptq_parts
from minillm.compress.importance import int_parts, searched
from minillm.ops import INTS
from minillm.quant.storage import Ints

ROWS, COLUMNS = 5, 24
STORAGES = [
    Ints("int8"),
    Ints("int4"),
    Ints("int4", 8),
    Ints("int4", 8, affine=True),
    Ints("int2", 12, affine=True),
    Ints("ternary"),
]
every_storage = pytest.mark.parametrize("storage", STORAGES, ids=str)
seeds = st.integers(0, 9999)


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A matrix, and the gram matrix of inputs that are correlated and of different sizes."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(64, 8)) @ rng.normal(size=(8, COLUMNS)) + 0.3 * rng.normal(size=(64, COLUMNS))
    x = (mixed * np.exp(rng.normal(size=COLUMNS))).astype(np.float32)
    return rng.normal(size=(ROWS, COLUMNS)).astype(np.float32), x.T @ x


def lost(w: np.ndarray, parts: Any, storage: Ints, gram: np.ndarray) -> float:
    """Sum over the inputs of the squares by which products differ, float64."""
    e = w.astype(np.float64) - np.asarray(storage.decode(parts))
    return np.trace(e @ gram @ e.T)


def as_in_the_paper(w: np.ndarray, gram: np.ndarray, storage: Ints) -> np.ndarray:
    """Algorithm 1 of arXiv:2210.17323 in float64, with blocks of one column: the codes."""
    _, scales, zeros = searched(w, np.diag(gram), storage)
    form, size = INTS[storage.format], COLUMNS // scales.shape[1]
    order = np.argsort(-np.diag(gram), kind="stable")
    hessian = gram[np.ix_(order, order)].astype(np.float64)
    hessian += DAMPING * np.mean(np.diag(hessian)) * np.eye(COLUMNS)
    u = np.linalg.cholesky(np.linalg.inv(hessian)).T  # upper: the inverse is u^T u
    left, codes = w.astype(np.float64)[:, order], np.zeros(w.shape)
    for i, column in enumerate(order):
        s, z = scales[:, column // size], 0 if zeros is None else zeros[:, column // size].astype(float)
        least, most = (0, 2**form.bits - 1) if storage.affine else (-form.largest, form.largest)
        codes[:, column] = np.clip(np.rint(left[:, i] / s) + z, least, most)
        error = (left[:, i] - s * (codes[:, column] - z)) / u[i, i]
        left[:, i:] -= np.outer(error, u[i, i:])
    return codes


@every_storage
@given(seed=seeds, block=st.sampled_from([5, 128]))
@settings(max_examples=15)
def test_codes_are_those_of_the_papers_algorithm_however_columns_are_blocked(storage, seed, block):
    w, gram = drawn(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gptq, "BLOCK", block)
        found: Any = gptq_parts(w, gram, storage)
    codes = storage.coded(found).codes
    assert np.array_equal(codes, as_in_the_paper(w, gram, storage))


@every_storage
@given(seed=seeds)
@settings(max_examples=10)
def test_inputs_that_have_nothing_to_do_with_each_other_leave_every_number_to_itself(storage, seed):
    w, _ = drawn(seed)
    squares = np.exp(np.random.default_rng(seed).normal(size=COLUMNS)).astype(np.float32)
    found, expected = gptq_parts(w, np.diag(squares), storage), int_parts(searched(w, squares, storage), storage)
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


@given(seed=seeds)
@settings(max_examples=10)
def test_columns_in_another_order_keep_their_codes(seed):
    w, gram = drawn(seed)
    order = np.random.default_rng(seed).permutation(COLUMNS)
    storage = Ints("int8")
    found: Any = gptq_parts(w, gram, storage)
    shuffled: Any = gptq_parts(w[:, order], gram[np.ix_(order, order)], storage)
    assert np.array_equal(np.asarray(storage.coded(found).codes)[:, order], storage.coded(shuffled).codes)


@pytest.mark.parametrize("storage", STORAGES[:4], ids=str)
@given(seed=seeds)
@settings(max_examples=15)
def test_products_with_correlated_inputs_differ_less_than_with_every_number_rounded_by_itself(storage, seed):
    w, gram = drawn(seed)
    plain = int_parts(searched(w, np.diag(gram), storage), storage)
    bent = gptq_parts(w, gram, storage)
    assert lost(w, bent, storage, gram) < lost(w, plain, storage, gram)


def test_a_matrix_that_is_no_gram_matrix_is_noticed():
    with pytest.raises(np.linalg.LinAlgError):
        gptq_parts(np.ones((2, 2), np.float32), np.array([[1, 5], [5, 1]], np.float32), Ints("int8"))


def test_a_matrix_that_is_not_finite_is_noticed():
    with pytest.raises(ValueError, match="NaN or infinity"):
        gptq_parts(np.full((2, 4), np.nan, np.float32), np.eye(4, dtype=np.float32), Ints("int4"))
