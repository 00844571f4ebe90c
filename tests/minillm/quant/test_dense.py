import operator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import QUICK
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.quant import Dense


@partial(jax.jit, compiler_options=QUICK)
def uses(weight, x, back, ids):
    """The matrix, products with it and its transpose, and rows and columns of it."""
    return weight.dense(), operator.matmul(x, weight), back @ weight.T, weight.rows(ids), weight.T.rows(ids)


@given(seed=st.integers(0, 99), transposed=st.booleans(), rows=st.sampled_from([(1,), (2, 3)]))
@settings(max_examples=20)
def test_every_use_of_a_weight_follows_from_its_dense_matrix(seed, transposed, rows):
    rng = np.random.default_rng(seed)
    matrix = rng.integers(-4, 5, (5, 7)).astype(np.float32)  # small integers: every order of summing is exact
    weight = Dense(jnp.asarray(matrix.T), transposed=True) if transposed else Dense(jnp.asarray(matrix))
    x, back = (rng.integers(-4, 5, (*rows, n)).astype(np.float32) for n in (5, 7))
    ids = rng.integers(0, 5, rows)
    assert weight.shape == (5, 7)
    assert weight.T.shape == (7, 5)
    expected = matrix, x @ matrix, back @ matrix.T, matrix[ids], matrix.T[ids]
    for one, other in zip(uses(weight, x, back, ids), expected, strict=True):
        assert np.array_equal(one, other)


def test_a_numpy_array_on_the_left_defers_to_the_weight():
    assert np.array_equal(operator.matmul(np.ones((1, 2), np.float32), Dense(jnp.ones((2, 3)))), [[2, 2, 2]])


def test_an_input_of_the_wrong_width_is_named():
    with pytest.raises(ValueError, match=r"x has 4 columns, but the weight is \[5, 7\]"):
        operator.matmul(np.ones((2, 4), np.float32), Dense(jnp.ones((5, 7))))


def test_an_id_outside_the_matrix_gives_nan_not_a_neighbour():
    assert np.isnan(Dense(jnp.ones((5, 7))).rows(jnp.array([5]))).all()


def test_bfloat16_weights_are_summed_in_float32():
    weight = Dense(jnp.ones((4096, 1), jnp.bfloat16))
    assert float((jnp.ones((1, 4096), jnp.bfloat16) @ weight)[0, 0]) == 4096
