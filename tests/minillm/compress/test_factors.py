"""AWQ and SmoothQuant change how a product is rounded, and not the product."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.compress.calibration import Inputs
from minillm.compress.factors import awq_factors, smooth_factors
from minillm.quant.recipes import recipe_named
from minillm.quant.scaled import Scaled

ROWS, COLUMNS = 6, 256
seeds = st.integers(0, 9999)


def drawn(seed: int, outlier: float = 1) -> tuple[np.ndarray, np.ndarray, Inputs]:
    """A matrix, the inputs that it meets, of which every 32nd is larger, and what calibration says of them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(32, COLUMNS)).astype(np.float32)
    x[:, ::32] *= outlier
    size = np.abs(x)
    told = Inputs(np.array(len(x), np.float32), x.T @ x, size.mean(0), size.max(0))
    return rng.normal(size=(ROWS, COLUMNS)).astype(np.float32), x, told


@partial(jax.jit, static_argnums=0)
def decoded(storage, parts):
    return storage.decode(parts)


@pytest.mark.parametrize("recipe", ["int4", "int4-g32", "int2-g64-affine", "fp8", "nvfp4", "nf4", "q4_0", "q4_k"])
@given(seed=seeds, outlier=st.sampled_from([1, 30]))
@settings(max_examples=2)
def test_awq_never_loses_more_than_rounding_to_nearest_on_what_it_has_seen(recipe, seed, outlier):
    w, x, inputs = drawn(seed, outlier)
    storage = recipe_named(recipe).storage
    parts, back = awq_factors(w, inputs, storage)
    found, plain = (e @ x.T for e in (w - decoded(storage, parts) * back, w - decoded(storage, storage.encode(w))))
    assert np.sum(found**2) <= np.sum(plain**2) * (1 + 1e-4)


def test_awq_halves_the_error_where_few_inputs_are_large():
    w, x, inputs = drawn(0, outlier=30)
    storage = recipe_named("int4-g32").storage
    parts, back = awq_factors(w, inputs, storage)
    awq, plain = (
        x @ (matrix - w).T for matrix in (decoded(storage, parts) * back, decoded(storage, storage.encode(w)))
    )
    assert np.mean(awq**2) < 0.5 * np.mean(plain**2)


@given(seed=seeds)
@settings(max_examples=10)
def test_smooth_leaves_inputs_and_weights_that_reach_equally_far(seed):
    w, x, inputs = drawn(seed, outlier=30)
    s = smooth_factors(w, inputs)
    np.testing.assert_allclose(np.abs(x / s).max(0), np.abs(w * s).max(0), rtol=1e-5)


def test_columns_and_inputs_of_zeros_are_left_alone_by_smooth():
    w, x, _ = drawn(0)
    w[:, 0], x[:, 1] = 0, 0
    size = np.abs(x)
    s = smooth_factors(w, Inputs(np.array(len(x), np.float32), x.T @ x, size.mean(0), size.max(0)))
    assert s[0] == s[1] == 1
    assert np.all(np.isfinite(s))
    assert np.all(s > 0)


def test_smooth_beats_plain_bytes_where_few_inputs_are_large():
    w, x, inputs = drawn(0, outlier=100)
    recipe, s = recipe_named("w8a8"), smooth_factors(w, inputs)
    smooth = Scaled(recipe.weight(recipe.storage.encode(w * s), COLUMNS, True), jnp.asarray(1 / s))
    plain = recipe.weight(recipe.storage.encode(w), COLUMNS, True)
    errors = [np.mean((jnp.asarray(x) @ weight - x @ w.T) ** 2) for weight in (smooth, plain)]
    assert errors[0] < 0.2 * errors[1]
