"""A scaled weight obeys what every weight obeys, with whatever weight inside."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.quant import Dense
from minillm.quant.coded import Coded
from minillm.quant.scaled import Scaled
from minillm.quant.storage import Ints

IN, OUT, GROUPS = 6, 8, 3


def drawn(seed: int, transposed: bool, groups: tuple[int, ...] = ()) -> tuple[np.ndarray, Scaled]:
    """Small integers times powers of two, so that every order of summing is exact: the matrix, and it scaled."""
    rng = np.random.default_rng(seed)
    inside = rng.integers(-4, 5, (*groups, IN, OUT)).astype(np.float32)
    factors = np.exp2(rng.integers(-3, 4, (*groups, IN))).astype(np.float32)
    stored = Dense(jnp.asarray(inside.swapaxes(-1, -2)), True) if transposed else Dense(jnp.asarray(inside))
    return inside * factors[..., None], Scaled(stored, jnp.asarray(factors))


@given(seed=st.integers(0, 99), transposed=st.booleans(), rows=st.sampled_from([(1,), (2, 3)]))
@settings(max_examples=12)
def test_every_use_of_a_scaled_weight_follows_from_its_dense_matrix(seed, transposed, rows):
    matrix, weight = drawn(seed, transposed)
    rng = np.random.default_rng(seed)
    x, back = (rng.integers(-4, 5, (*rows, n)).astype(np.float32) for n in (IN, OUT))
    ids, others = rng.integers(0, IN, rows), rng.integers(0, OUT, rows)
    assert weight.shape == (IN, OUT)
    assert weight.T.shape == (OUT, IN)
    assert np.array_equal(weight.dense(), matrix)
    assert np.array_equal(weight.T.dense(), matrix.T)
    assert np.array_equal(operator.matmul(x, weight), x @ matrix)  # NumPy on the left
    assert np.array_equal(jnp.asarray(back) @ weight.T, back @ matrix.T)
    assert np.array_equal(weight.rows(jnp.asarray(ids)), matrix[ids])
    assert np.array_equal(weight.T.rows(jnp.asarray(others)), matrix.T[others])
    assert np.array_equal(jnp.asarray(x) @ weight, x @ matrix)


@given(seed=st.integers(0, 99), transposed=st.booleans())
@settings(max_examples=8)
def test_each_expert_has_factors_of_its_own(seed, transposed):
    matrices, weight = drawn(seed, transposed, (GROUPS,))
    x = np.random.default_rng(seed).integers(-4, 5, (7, IN)).astype(np.float32)
    groups = [0, 0, 0, 2, 2]  # the last two rows are of none
    sizes = jnp.asarray(np.bincount(groups, minlength=GROUPS), jnp.int32)
    expected = [x[i] @ matrices[group] for i, group in enumerate(groups)] + [np.zeros(OUT)] * 2
    assert weight.shape == (IN, OUT)
    assert np.array_equal(weight.dense(), matrices)
    assert np.array_equal(jax.jit(lambda x, w, s: w.grouped(x, s))(x, weight, sizes), expected)


def test_an_id_outside_the_matrix_gives_nan_not_a_neighbour():
    _, weight = drawn(0, transposed=False)
    assert np.isnan(weight.rows(jnp.array([IN, -1]))).all()
    assert np.isnan(weight.T.rows(jnp.array([OUT, -1]))).all()


def test_rows_of_a_few_bits_are_those_of_the_product():
    """An embedding's transpose is the head: both are one matrix."""
    w = np.random.default_rng(0).normal(size=(OUT, IN)).astype(np.float32)
    factors = jnp.asarray(np.random.default_rng(1).uniform(0.5, 2, IN), jnp.float32)
    head = Scaled(Coded.of(w, Ints("int4"), transposed=True), factors)
    embedding, ids = head.T, jnp.arange(OUT)
    np.testing.assert_array_equal(embedding.rows(ids), embedding.dense())
    np.testing.assert_allclose(jnp.eye(IN) @ embedding.T, embedding.dense().T, rtol=1e-6)


def test_bfloat16_rows_are_scaled_in_float32_and_come_out_as_bfloat16():
    """257 / 2 is no bfloat16, but half of it plus half of 255 is."""
    weight = Scaled(Dense(jnp.ones((2, 1))), jnp.asarray([257 / 256, 255 / 256], jnp.float32))
    y = jnp.asarray([[128, 128]], jnp.bfloat16) @ weight
    assert y.dtype == jnp.bfloat16
    assert float(y[0, 0]) == 256


@pytest.mark.parametrize("transposed", [False, True])
def test_a_weight_is_a_tree_whose_leaves_can_be_replaced(transposed):
    matrix, weight = drawn(3, transposed)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, weight)
    assert np.array_equal(doubled.dense(), 4 * matrix)
