import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import assert_within, unit

from minillm import ops
from minillm.ops import norm

rms_norm = jax.jit(ops.rms_norm)
shapes = st.sampled_from([(1,), (7,), (3, 16), (2, 5, 24)])
epsilons = st.sampled_from([0.0, 1e-6, 1e-2, 1.0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), shape=shapes, eps=epsilons, size=st.integers(-12, 12))
def test_rms_norm_is_the_definition_rounded_once(dtype, seed, shape, eps, size):
    rng = np.random.default_rng(seed)
    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray(rng.normal(size=shape) * 2.0**size, dtype)
        weight = jnp.asarray(rng.normal(size=shape[-1]), dtype)
        y = rms_norm(x, weight, eps)
        assert y.dtype == x.dtype
        ideal = ops.rms_norm_ref(np.asarray(x), np.asarray(weight), eps)
    # The mean square rounds d squares and d sums, and the root halves that; reading eps, the root (2), its
    # reciprocal and two products are six more. All of that is in float32 or wider, then one cast back.
    wide = unit(np.promote_types(y.dtype, np.float32))
    assert_within(y, ideal, np.abs(ideal) * ((shape[-1] + 6) * wide + unit(y.dtype)))


def test_every_argument_changes_the_norm():
    x, weight = np.array([[3, -4]], np.float32), np.ones(2, np.float32)
    plain = rms_norm(x, weight, 0.5)
    for other in (rms_norm(x * 2, weight, 0.5), rms_norm(x, weight * 2, 0.5), rms_norm(x, weight, 5)):
        assert not np.array_equal(plain, other)


def test_a_row_of_zeros_stays_zero():
    assert np.array_equal(rms_norm(jnp.zeros((2, 4)), jnp.ones(4), 1e-6), np.zeros((2, 4)))


layer_norm = jax.jit(norm.layer_norm)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), offset=st.integers(-(2**16), 2**16))
def test_layer_norm_does_not_see_a_constant_added_to_a_row(seed, offset):
    rng = np.random.default_rng(seed)
    x, weight, bias = rng.integers(-8, 9, (3, 24)).astype(np.float32), *rng.normal(size=(2, 24)).astype(np.float32)
    ideal = norm.layer_norm_ref(x, weight, bias, 1e-2)
    # The mean of d numbers as large as the offset rounds by d units of it, and the variance's root is 0.1 or more.
    error = 24 * unit("float32") * (abs(offset) + 8) / 0.1
    bound = np.abs(weight) * error * 3 + 16 * unit("float32") * (np.abs(ideal) + np.abs(bias))
    assert_within(layer_norm(x + offset, weight, bias, 1e-2), ideal, bound)


def test_every_argument_changes_the_layer_norm():
    x, ones = np.array([[3, -4]], np.float32), np.ones(2, np.float32)
    plain = layer_norm(x, ones, ones, 0.5)
    others = ((x**2, ones, ones, 0.5), (x, ones * 2, ones, 0.5), (x, ones, -ones, 0.5), (x, ones, ones, 5))
    for other in others:
        assert not np.array_equal(plain, layer_norm(*other))


def test_a_constant_row_becomes_the_bias():
    bias = jnp.arange(4.0)
    assert np.array_equal(layer_norm(jnp.full((2, 4), 7.0), jnp.ones(4), bias, 1e-6), np.tile(bias, (2, 1)))
