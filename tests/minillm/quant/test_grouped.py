"""One matrix for each group of rows."""

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
from minillm.quant.grouped import tile_height

GROUPS, IN, OUT = 5, 7, 6


def draw(seed: int, rows: int, transposed: bool):
    """Small integers, so that every order of summing is exact; some groups are empty, some rows are in none."""
    rng = np.random.default_rng(seed)
    matrices = rng.integers(-4, 5, (GROUPS, IN, OUT)).astype(np.float32)
    stored = jnp.asarray(matrices.swapaxes(1, 2) if transposed else matrices)
    popular = rng.choice(GROUPS, rng.integers(1, GROUPS + 1), replace=False)
    groups = np.sort(rng.choice(popular, rng.integers(0, rows + 1)))
    x, dy = (rng.integers(-4, 5, (rows, width)).astype(np.float32) for width in (IN, OUT))
    return x, dy, matrices, Dense(stored, transposed), groups


def sizes_of(groups) -> np.ndarray:
    return np.bincount(groups, minlength=GROUPS).astype(np.int32)


def row_by_row(x, matrices, groups) -> np.ndarray:
    y = np.zeros((len(x), matrices.shape[2]), np.float32)
    for row, group in enumerate(groups):
        y[row] = x[row] @ matrices[group]
    return y


def grouped(x, weight, sizes):
    return weight.grouped(x, sizes)


@partial(jax.jit, compiler_options=QUICK)
def gradients(x, weight, sizes, dy):
    return jax.vjp(lambda x, weight: weight.grouped(x, sizes), x, weight)[1](dy)


product = jax.jit(grouped, compiler_options=QUICK)


draws = given(seed=st.integers(0, 999), rows=st.sampled_from([1, 4, 13, 400]), transposed=st.booleans())


@settings(max_examples=60)
@draws
def test_each_group_of_rows_is_multiplied_by_its_own_matrix(seed, rows, transposed):
    x, _, matrices, weight, groups = draw(seed, rows, transposed)
    assert weight.shape == (IN, OUT)
    assert np.array_equal(weight.dense(), matrices)
    assert np.array_equal(product(x, weight, sizes_of(groups)), row_by_row(x, matrices, groups))


@settings(max_examples=40)
@draws
def test_gradients_are_those_of_the_rows_one_by_one(seed, rows, transposed):
    x, dy, matrices, weight, groups = draw(seed, rows, transposed)
    dx, dweight = gradients(x, weight, sizes_of(groups), dy)
    expected = np.zeros_like(matrices)
    for row, group in enumerate(groups):
        expected[group] += np.outer(x[row], dy[row])
    assert np.array_equal(dx, row_by_row(dy, matrices.swapaxes(1, 2), groups))
    assert np.array_equal(dweight.dense(), expected)


def test_the_heights_of_tiles_that_were_tried_differ():
    assert {tile_height(rows, GROUPS) for rows in (1, 4, 13, 400)} == {1, 2, 64}


@pytest.mark.parametrize("rows", [4, 13, 400])
def test_nothing_of_an_idle_group_or_of_padding_is_used(rows):
    """They hold NaN here; so does not one result."""
    x, dy, _, weight, _ = draw(0, rows, transposed=False)
    groups = np.sort(np.arange(rows - 1) % 2 * 3)  # 0 and 3
    matrices = weight.dense().at[np.array([1, 2, 4])].set(jnp.nan)
    x[-1] = dy[-1] = np.nan
    assert np.isfinite(product(x, Dense(matrices), sizes_of(groups))).all()
    dx, dweight = gradients(x, Dense(matrices), sizes_of(groups), dy)
    assert np.isfinite(dx).all()
    assert np.isfinite(dweight.dense()).all()


def test_few_rows_do_not_touch_all_matrices():
    """A compiled decoding step makes room for one matrix out of 16, and works on two."""
    x, weight, sizes = jnp.ones((2, 256)), Dense(jnp.ones((16, 512, 256)), transposed=True), jnp.ones(16, jnp.int32)
    memory = jax.jit(grouped).lower(x, weight, sizes).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 2 * 4 * 512 * 256


def test_bfloat16_rows_come_out_as_bfloat16():
    weight = Dense(jnp.ones((2, 4096, 1), jnp.bfloat16))
    y = product(jnp.ones((3, 4096), jnp.bfloat16), weight, jnp.array([2, 1], jnp.int32))
    assert y.dtype == jnp.bfloat16
    assert np.array_equal(y.astype(jnp.float32), np.full((3, 1), 4096, np.float32))


def test_shapes_that_do_not_fit_are_named():
    weight, sizes = Dense(jnp.ones((3, 7, 6))), jnp.ones(3, jnp.int32)
    with pytest.raises(ValueError, match=r"x is \[2, 6\] in 3 groups, but the weight is \[3, 7, 6\]"):
        weight.grouped(jnp.ones((2, 6)), sizes)
    with pytest.raises(ValueError, match=r"x is \[2, 7\] in 2 groups, but the weight is \[3, 7, 6\]"):
        weight.grouped(jnp.ones((2, 7)), sizes[:2])
    with pytest.raises(ValueError, match=r"the weight is \[3, 7, 6\], one matrix for each group"):
        operator.matmul(jnp.ones((2, 7)), weight)
    with pytest.raises(ValueError, match=r"in 3 groups, but the weight is \[3, 7\]"):
        Dense(jnp.ones((3, 7))).grouped(jnp.ones((2, 7)), sizes)
