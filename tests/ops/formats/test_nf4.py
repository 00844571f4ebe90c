"""NF4: the nearest of sixteen numbers, the same from NumPy and JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import AS_USERS
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.ops import NF4, decode_nf4, decode_nf4_ref, encode_nf4, encode_nf4_ref

CAST, BACK = (jax.jit(one, compiler_options=AS_USERS) for one in (encode_nf4, decode_nf4))


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_the_nearest_number_is_taken_and_jax_gives_the_same_bits(seed):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(4, 128)) * np.exp2(rng.integers(-30, 30, (4, 1)))).astype(np.float32)
    x[0, :64], x[1, 64:] = 0, -2
    coded = encode_nf4_ref(x)
    for one, other in zip(coded, CAST(x), strict=True):
        assert np.array_equal(one, np.asarray(other))
    assert np.array_equal(np.asarray(BACK(coded)), decode_nf4_ref(coded).astype(np.float32))
    scales = np.repeat(coded.scales, 64, axis=-1).astype(np.float64)
    nearest = np.min(np.abs(x[..., None] - scales[..., None] * NF4), axis=-1)
    assert np.all(np.abs(decode_nf4_ref(coded) - x) <= nearest + 1e-6 * scales)


def test_subnormal_and_huge_numbers_get_the_defined_codes():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(3, 64)) * np.array([[2.0**-126], [1], [1e38]])).astype(np.float32)
    x[0, 0] = 2.0**-124
    x[2] = np.resize(np.array([3e38, -3e38, 1.5e38, 0], np.float32), 64)
    for one in (encode_nf4(jnp.asarray(x)), CAST(x)):
        assert np.array_equal(one.codes, encode_nf4_ref(x).codes)


def test_every_code_means_itself():
    block = np.concatenate([NF4, np.zeros(48, np.float32)]) * np.float32(4)
    coded = encode_nf4_ref(block)
    assert coded.scales.tolist() == [4]
    assert coded.codes[:16].tolist() == list(range(16))
    assert np.array_equal(decode_nf4_ref(coded), block)


def test_the_numbers_are_quantiles_of_a_normal_distribution():
    """Appendix E's numbers follow its equation 4: evenly spaced quantiles of each half, over the outermost."""
    from scipy.stats import norm

    offset = (1 - 1 / 32 + 1 - 1 / 30) / 2
    positive = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    negative = norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    numbers = np.sort(np.concatenate([positive, [0], -negative])) / positive.max()
    assert np.allclose(numbers, NF4, atol=2e-7)


def test_numbers_that_make_no_blocks_are_refused():
    with pytest.raises(ValueError, match=r"x has shape \[63\], expected a last axis of a multiple of 64"):
        encode_nf4_ref(np.zeros(63))
    with pytest.raises(ValueError, match="x holds NaN or infinity"):
        encode_nf4_ref(np.full(64, np.inf))
