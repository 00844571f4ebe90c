import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import assert_within, unit

from minillm.ops import activations as act

X = jnp.linspace(-8, 8, 65, dtype=jnp.float32)


def test_values_from_the_papers():
    """silu at its minimum, gelu at 1 (Phi(1) = 0.8413), softplus at 0."""
    assert np.isclose(act.silu_ref(np.array([-1.27846454])), -0.27846454, rtol=1e-8)
    assert np.isclose(act.gelu_ref(np.array([1.0])), 0.8413447460685429, rtol=1e-15)
    assert act.softplus_ref(np.array([0.0])) == np.log(2)
    assert np.array_equal(act.relu2_ref(np.array([-3.0, 0, 3])), [0, 0, 9])


def test_gelu_keeps_its_digits_far_below_zero():
    """1 + erf would have cancelled to 0 at -6, where gelu is -5.9e-9."""
    x = np.array([-6, -5, -4], np.float32)
    ideal = act.gelu_ref(x)
    assert_within(act.gelu(jnp.asarray(x)), ideal, np.abs(ideal) * 64 * unit("float32"))


def test_the_two_gelus_nearly_agree_and_are_not_the_same():
    gap = np.abs(np.asarray(act.gelu(X)) - np.asarray(act.gelu_tanh(X))).max()
    assert 1e-4 < gap < 1e-3


def test_clamped_swiglu_by_hand():
    """Beyond the limit a gate is 7 and an up 7 or -7; a gate below -7 is not clamped."""
    gate, up = jnp.array([9.0, 1, -9]), jnp.array([9.0, -9, 0])
    ideal = [7 / (1 + np.exp(-7 * 1.702)) * 8, 1 / (1 + np.exp(-1.702)) * -6, -9 / (1 + np.exp(9 * 1.702))]
    assert np.allclose(act.clamped_swiglu(gate, up), ideal, rtol=1e-6)
    assert not np.array_equal(act.clamped_swiglu(gate, up, limit=1.0), act.clamped_swiglu(gate, up))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="clamped_swiglu: limit is 0, expected more than 0"):
        act.clamped_swiglu(X, X, limit=0)
    with pytest.raises(ValueError, match=r"swiglu: up \[... f\] has f = 64, but gate has f = 65"):
        act.swiglu(X, X[:-1])
    with pytest.raises(ValueError, match=r"silu: x \[...\] has dtype int32, expected float"):
        act.silu(jnp.arange(3, dtype=jnp.int32))
