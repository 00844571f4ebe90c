import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import assert_within, unit

from minillm import ops

B, T, H, K = 2, 5, 3, 16
FREQS = ops.rope_frequencies(K, 10000.0)

apply_rope = jax.jit(ops.apply_rope, static_argnames="layout")
seeds = st.integers(0, 2**32 - 1)
LAYOUTS = ("half", "interleaved")
layouts = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.fixture
def _float64():
    """Where a property is of the algebra alone, rounding must not hide a violation."""
    with jax.enable_x64(True):
        yield


def pairs(x: np.ndarray, layout: str, turned: int) -> np.ndarray:
    """The two channels of each turned pair, [... 2 pairs]."""
    x = np.asarray(x, np.float64)[..., :turned]
    split = (x[..., : turned // 2], x[..., turned // 2 :]) if layout == "half" else (x[..., 0::2], x[..., 1::2])
    return np.stack(split, axis=-2)


def unpairs(x: np.ndarray, layout: str) -> np.ndarray:
    """Undo `pairs`: [... 2 pairs] -> [... channels]."""
    return (x if layout == "half" else x.swapaxes(-1, -2)).reshape(*x.shape[:-2], -1)


@layouts
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@settings(max_examples=15)
@given(seed=seeds, turned=st.sampled_from([K, 6]), last=st.sampled_from([3, 513, 8192]))
def test_rope_is_the_definition_up_to_the_rounding_of_the_angle(dtype, layout, seed, turned, last):
    rng = np.random.default_rng(seed)
    pos, freqs = rng.integers(-2, last + 1, (B, T), np.int32), FREQS[: turned // 2]
    pos[0, 0] = last
    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray(rng.normal(size=(B, T, H, K)), dtype)
        y = apply_rope(x, pos, freqs, layout=layout)
        assert y.dtype == x.dtype
        x, y = np.asarray(x), np.asarray(y)
        ideal = ops.apply_rope_ref(x, pos, freqs, layout)
    # A position and a frequency are exact, their product is rounded: the pair is turned too far by up to
    # angle * unit (at 8192, 8192 * 2^-24 = 0.0005 radians). Sine and cosine, two products and a sum add at
    # most eight roundings of the pair's length; then one cast back. Channels beyond the turned ones are copied.
    wide = unit(np.promote_types(y.dtype, np.float32))
    length = np.linalg.norm(pairs(x, layout, turned), axis=-2)
    error = length * (np.abs(pos)[:, :, None, None] * freqs.astype(np.float64) + 8) * wide
    bound = unpairs(np.stack([error, error], axis=-2), layout) + unit(y.dtype) * np.abs(ideal[..., :turned])
    assert_within(y[..., :turned], ideal[..., :turned], bound)
    assert np.array_equal(y[..., turned:], x[..., turned:])


@layouts
@pytest.mark.usefixtures("_float64")
@settings(max_examples=25)
@given(seed=seeds, m=st.integers(0, 4096), n=st.integers(0, 4096), shift=st.integers(-4096, 4096))
def test_scores_depend_only_on_the_difference_of_positions(layout, seed, m, n, shift):
    q, k = np.random.default_rng(seed).normal(size=(2, B, T, H, K))

    def scores(m, n):
        turned = (apply_rope(x, np.full((B, T), at, np.int32), FREQS, layout=layout) for x, at in ((q, m), (k, n)))
        return np.sum(np.prod([*turned], axis=0), axis=-1)

    # Each angle, at most 8192 radians, is rounded once; K products are summed after a few roundings each.
    bound = np.linalg.norm(q, axis=-1) * np.linalg.norm(k, axis=-1) * (4 * 8192 + 4 * K) * unit("float64")
    assert_within(scores(m + shift, n + shift), scores(m, n), bound)


@layouts
@pytest.mark.usefixtures("_float64")
@settings(max_examples=15)
@given(seed=seeds, turned=st.sampled_from([K, 6]))
def test_turning_keeps_the_length_of_every_pair(layout, seed, turned):
    rng = np.random.default_rng(seed)
    x, pos = rng.normal(size=(B, T, H, K)), rng.integers(0, 8192, (B, T), np.int32)
    y = np.asarray(apply_rope(x, pos, FREQS[: turned // 2], layout=layout))
    before, after = (np.linalg.norm(pairs(z, layout, turned), axis=-2) for z in (x, y))
    assert_within(after, before, 8 * unit("float64") * before)


@settings(max_examples=15)
@given(seed=seeds)
def test_half_is_interleaved_with_the_channels_permuted(seed):
    rng = np.random.default_rng(seed)
    x, pos = rng.normal(size=(B, T, H, K)).astype(np.float32), rng.integers(0, 8192, (B, T), np.int32)
    permuted = unpairs(pairs(x, "half", K), "interleaved").astype(np.float32)
    half, interleaved = (
        np.asarray(apply_rope(z, pos, FREQS, layout=l)) for z, l in zip((x, permuted), LAYOUTS, strict=True)
    )
    assert np.array_equal(pairs(half, "half", K), pairs(interleaved, "interleaved", K))


def test_position_zero_changes_nothing():
    x = np.random.default_rng(0).normal(size=(B, T, H, K)).astype(np.float32)
    assert np.array_equal(apply_rope(x, np.zeros((B, T), np.int32), FREQS), x)


def test_every_argument_changes_the_rotation():
    x = np.random.default_rng(0).normal(size=(B, T, H, K)).astype(np.float32)
    pos = np.tile(np.arange(1, T + 1, dtype=np.int32), (B, 1))
    plain = apply_rope(x, pos, FREQS)
    for args in ((-x, pos, FREQS), (x, pos + 1, FREQS), (x, pos, FREQS * 2), (x, pos, FREQS[:4])):
        assert not np.array_equal(plain, apply_rope(*args))
    assert not np.array_equal(plain, apply_rope(x, pos, FREQS, layout="interleaved"))


@pytest.mark.parametrize("theta", [10000.0, 500000.0, 1e6])
@pytest.mark.parametrize("k", [2, 64, 128])
def test_frequencies_follow_the_paper(k, theta):
    freqs = ops.rope_frequencies(k, theta)
    ideal = theta ** (-np.arange(0, k, 2) / k)
    assert freqs.dtype == np.float32
    assert_within(freqs, ideal, ideal * unit("float32"))  # rounded once


def test_an_unknown_layout_is_named():
    with pytest.raises(ValueError, match="apply_rope: layout is 'pairs'"):
        apply_rope(jnp.zeros((B, T, H, K)), jnp.zeros((B, T), jnp.int32), FREQS, layout="pairs")


def test_more_frequencies_than_pairs_are_refused():
    with pytest.raises(ValueError, match=r"apply_rope: freqs \[j\] has j = 8, more than half of x's k = 14"):
        apply_rope(jnp.zeros((B, T, H, K - 2)), jnp.zeros((B, T), jnp.int32), FREQS)
