"""Integers with a scale: near what they were, the same bits from NumPy and from JAX, and by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import AS_USERS
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.ops import INTS, decode_ints, decode_ints_ref, encode_ints, encode_ints_ref

TINY = np.finfo(np.float32).tiny
SIZES = (None, 8, 20)
KINDS = [(name, affine) for name in INTS for affine in (False, True) if not (affine and name == "ternary")]
compiled = partial(jax.jit, compiler_options=AS_USERS)
CASTS = {
    (*kind, group): compiled(partial(encode_ints, format=kind[0], affine=kind[1], group=group))
    for kind in KINDS
    for group in SIZES
}
BACK = compiled(decode_ints)
every_kind = pytest.mark.parametrize(("name", "affine"), KINDS)
seeds = st.integers(0, 2**32 - 1)


def drawn(seed: int) -> np.ndarray:
    """Rows of all sizes of numbers, zeros, subnormals, equal numbers and numbers of one sign among them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(8, 40)) * np.exp2(rng.integers(-20, 20, (8, 1)))
    x[0] *= 2.0**-110
    x[1] *= 2.0**90
    x[2, :8], x[2, 8:16] = 0, -1.75
    x[3] = np.abs(x[3])
    x[4] = np.round(x[4])
    return x.astype(np.float32)


def repeated(scales: np.ndarray, n: int) -> np.ndarray:
    """Scales [..., groups] for each of n numbers."""
    return np.repeat(scales.astype(np.float64), n // scales.shape[-1], axis=-1)


@every_kind
@given(seed=seeds, group=st.sampled_from(SIZES))
@settings(max_examples=20)
def test_jax_gives_the_defined_bits(name, affine, seed, group):
    x = drawn(seed)
    expected, found = encode_ints_ref(x, name, group=group, affine=affine), CASTS[name, affine, group](x)
    for one, other in zip(expected, found, strict=True):
        assert (one is None and other is None) or np.array_equal(np.asarray(one), np.asarray(other))
    assert np.array_equal(np.asarray(BACK(expected)), decode_ints_ref(expected).astype(np.float32))


@every_kind
@given(seed=seeds, group=st.sampled_from(SIZES))
@settings(max_examples=20)
def test_no_number_within_reach_is_further_than_half_a_step_from_what_it_was(name, affine, seed, group):
    x = drawn(seed)
    coded = encode_ints_ref(x, name, group=group, affine=affine)
    step, form = repeated(coded.scales, x.shape[-1]), INTS[name]
    low, high = (0, 2**form.bits - 1) if affine else (-form.largest, form.largest)
    zero = 0 if coded.zeros is None else repeated(coded.zeros, x.shape[-1])
    within = (step > 0) & (x >= (low - zero - 0.5) * step) & (x <= (high - zero + 0.5) * step)
    error = np.abs(decode_ints_ref(coded) - np.where(np.abs(x) < TINY, 0, x))
    assert np.all(error[within] <= (step / 2 * (1 + 2.0**-15))[within])  # x / s is rounded before it is an integer
    if name != "ternary" and not affine:
        assert np.all(within[step > 0])


@every_kind
@given(seed=seeds)
@settings(max_examples=10)
def test_what_was_decoded_gets_the_same_codes(name, affine, seed):
    once = encode_ints_ref(drawn(seed)[1:], name, group=8, affine=affine)
    again = encode_ints_ref(decode_ints_ref(once).astype(np.float32), name, group=8, affine=affine)
    if name == "ternary":  # whose scale is the mean, which rounding has moved
        assert np.array_equal(np.sign(once.codes), np.sign(again.codes))
    else:
        changed = once.codes.astype(int) - (0 if once.zeros is None else np.repeat(once.zeros.astype(int), 8, -1))
        after = again.codes.astype(int) - (0 if again.zeros is None else np.repeat(again.zeros.astype(int), 8, -1))
        kept = np.repeat(np.abs(again.scales / np.where(once.scales > 0, once.scales, 1) - 1) < 1e-5, 8, -1)
        assert np.array_equal(changed[kept], after[kept])
        assert affine or np.all(kept[np.repeat(once.scales > 0, 8, -1)])


@every_kind
@given(seed=seeds, power=st.integers(-10, 10))
@settings(max_examples=10)
def test_powers_of_two_only_move_the_scales(name, affine, seed, power):
    x = drawn(seed)[2:]
    one, other = (encode_ints_ref(y, name, group=8, affine=affine) for y in (x, x * np.float32(2.0**power)))
    assert np.array_equal(one.codes, other.codes)
    assert np.array_equal(one.scales * np.float32(2.0**power), other.scales)


@every_kind
@given(seed=seeds)
@settings(max_examples=10)
def test_larger_numbers_get_no_smaller_codes_and_the_order_of_groups_does_not_matter(name, affine, seed):
    x = drawn(seed)
    coded = encode_ints_ref(x, name, group=8, affine=affine)
    groups, codes = x.reshape(-1, 8), np.asarray(coded.codes, np.int64).reshape(-1, 8)
    order = np.argsort(groups, axis=1)
    assert np.all(np.diff(np.take_along_axis(codes, order, 1), axis=1) >= 0)
    shuffled = np.random.default_rng(seed).permutation(len(groups))
    moved = encode_ints_ref(groups[shuffled], name, affine=affine)
    assert np.array_equal(moved.codes, codes[shuffled])
    assert np.array_equal(moved.scales[:, 0], coded.scales.reshape(-1)[shuffled])


@every_kind
@given(seed=seeds)
@settings(max_examples=5)
def test_a_searched_scale_errs_no_more_than_the_one_that_reaches_all(name, affine, seed):
    x = drawn(seed)[2:]
    importance = np.random.default_rng(seed).gamma(1, size=x.shape[-1])

    def error(scale):
        weights = {"importance": importance} if scale == "mse" else {}
        coded = encode_ints_ref(x, name, group=8, affine=affine, scale=scale, **weights)
        squares = importance * np.square(decode_ints_ref(coded) - x)
        return squares.reshape(-1, 8).sum(axis=1)

    assert np.all(error("mse") <= error("absmax") * (1 + 1e-6))


def test_four_bits_by_hand():
    x = np.array([7, -3.5, 2.5, 0.49, -7, 0, 1, 3], np.float32)
    coded = encode_ints_ref(x, "int4")
    assert coded.scales.tolist() == [1]
    assert coded.codes.tolist() == [7, -4, 2, 0, -7, 0, 1, 3]  # ties to even
    coded = encode_ints_ref(np.array([-5, 10, 0, 2.4], np.float32), "int4", affine=True)
    assert [one.tolist() for one in coded[1:] if one is not None] == [[1], [5]]
    assert coded.codes.tolist() == [0, 15, 5, 7]
    coded = encode_ints_ref(np.array([1, 2, 3, 2], np.float32), "int2", affine=True)
    assert [one.tolist() for one in coded[1:] if one is not None] == [
        [1],
        [0],
    ]  # 0 is held though no number is near it
    coded = encode_ints_ref(np.array([0.25, -1, 2, -0.75], np.float32), "ternary")
    assert (coded.scales.tolist(), coded.codes.tolist()) == ([1], [0, -1, 1, -1])


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (np.zeros((2, 33)), {"group": 32}, r"x has shape \[2, 33\], expected a last axis of a multiple of 32"),
        (np.zeros((2, 0)), {}, r"x has shape \[2, 0\], expected one axis or more"),
        (np.zeros(8), {"group": -4}, "expected a last axis of a multiple of -4"),
        (np.float32(1), {}, r"x has shape \[\]"),
        (np.array([1, np.nan]), {}, "x holds NaN or infinity, expected finite numbers"),
        (np.array([-3e38, 3e38]), {"affine": True}, "x spans or sums up to more than float32 holds"),
        (np.ones(4), {"scale": "best"}, "scale is 'best', expected absmax or mse"),
        (np.ones(4), {"importance": np.ones(4)}, "importance is given for absmax"),
        (np.ones(4), {"scale": "mse", "importance": -np.ones(4)}, "importance holds NaN, infinity or less than 0"),
    ],
)
def test_numbers_that_have_no_codes_are_refused(x, options, message):
    with pytest.raises(ValueError, match=message):
        encode_ints_ref(x, "int4", **options)


def test_a_format_that_is_none_is_refused():
    with pytest.raises(ValueError, match="format is 'int5', expected one of int8, int4, int2, ternary"):
        encode_ints(jnp.zeros(4), "int5")
    with pytest.raises(ValueError, match="format is 'ternary' and affine"):
        encode_ints(jnp.zeros(4), "ternary", affine=True)


@pytest.mark.parametrize("shape", [(64, 2560), (512, 512)])
def test_large_matrices_ties_and_huge_numbers_get_the_defined_codes_compiled_and_not(shape):
    """XLA makes x / s, with one s for a row, products with 1 / s, unless it is kept from that."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(np.float32)
    x[1] = np.float32(2.0) ** rng.integers(-3, 4, shape[1]) * 1.5
    x[2] = np.resize(np.array([3e38, -3e38, 1.5e38, 0], np.float32), shape[1])
    for name, affine in (("int8", False), ("int8", True), ("int4", False)):
        rows = x if not affine else np.delete(x, 2, 0)
        expected = encode_ints_ref(rows, name, affine=affine)
        for cast in (encode_ints, compiled(encode_ints, static_argnames=("format", "affine"))):
            found = cast(jnp.asarray(rows), format=name, affine=affine)
            assert np.array_equal(found.codes, expected.codes)
            assert np.array_equal(found.scales, expected.scales)
