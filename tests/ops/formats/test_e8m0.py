"""E8M0: every code, and every side a number may go to."""

import jax
import ml_dtypes
import numpy as np
import pytest

from minillm.ops import decode_e8m0, decode_e8m0_ref, encode_e8m0, encode_e8m0_ref

CODES = np.arange(256, dtype=np.uint8)
SIDES = ("nearest", "floor", "ceil")


def samples() -> np.ndarray:
    """Powers of two of float32, their neighbours, the middles and theirs, subnormals and what is no number."""
    with np.errstate(over="ignore"):
        powers = np.exp2(np.arange(-149, 128)).astype(np.float32)
        around = np.concatenate([powers, powers * np.float32(1.5)])
    around = np.concatenate([around, np.nextafter(around, 0), np.nextafter(around, np.float32(np.inf))])
    odd = np.array([0.0, -0.0, -1.0, np.inf, -np.inf, np.nan], np.float32)
    return np.concatenate([around, odd]).astype(np.float32)


def test_every_code_means_what_ml_dtypes_says_and_comes_back():
    numbers = decode_e8m0_ref(CODES)
    assert np.array_equal(numbers, CODES.view(ml_dtypes.float8_e8m0fnu).astype(np.float64), equal_nan=True)
    # as bits: XLA takes the subnormal 2^-127 for zero when it is compared
    assert np.array_equal(
        np.asarray(jax.jit(decode_e8m0)(CODES)).view(np.uint32)[:255], numbers.astype("f4").view("u4")[:255]
    )
    for side in SIDES:
        assert np.array_equal(encode_e8m0_ref(numbers, side), CODES)


def test_positive_numbers_round_as_in_ml_dtypes():
    x = samples()
    x = x[(x >= 2.0**-126) & np.isfinite(x)]
    assert np.array_equal(encode_e8m0_ref(x), x.astype(ml_dtypes.float8_e8m0fnu).view(np.uint8))


@pytest.mark.parametrize("side", SIDES)
def test_jax_gives_the_defined_codes_and_sides_are_kept(side):
    x = samples()
    codes = encode_e8m0_ref(x, side)
    assert np.array_equal(jax.jit(encode_e8m0, static_argnames="side")(x, side=side), codes)
    good = (x > 0) & np.isfinite(x) & (codes < 255)
    assert np.all(codes[~((x > 0) & np.isfinite(x))] == 255)
    numbers, within = decode_e8m0_ref(codes[good]), x[good] >= 2.0**-127
    ratio = (x[good].astype(np.float64) / numbers)[within]
    low, high = {"nearest": (0.75, 1.5), "floor": (1, 2), "ceil": (0.5, 1)}[side]
    assert np.all((ratio >= low) & (ratio <= high))


def test_a_side_that_is_none_is_refused():
    with pytest.raises(ValueError, match="side is 'up', expected one of nearest, floor, ceil"):
        encode_e8m0(np.ones(1, np.float32), "up")  # pyright: ignore[reportArgumentType]
