"""Every code means what it should, and every number gets the code it should: all of them, one by one."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from agreement import AS_USERS
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minillm.ops import FLOATS, decode_float, decode_float_ref, encode_float, encode_float_ref

THEIRS = {
    "bf16": ml_dtypes.bfloat16,
    "fp16": np.float16,
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3": ml_dtypes.float8_e4m3,
    "e3m4": ml_dtypes.float8_e3m4,
    "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e2m1": ml_dtypes.float4_e2m1fn,
}
ROUNDINGS = ("nearest", "toward zero", "stochastic")


def codes_of(name: str) -> np.ndarray:
    return np.arange(1 << FLOATS[name].bits, dtype=np.uint16)


def as_theirs(codes: np.ndarray, name: str) -> np.ndarray:
    """The numbers that ml_dtypes, or NumPy, reads from codes."""
    bits = codes.astype(np.uint8) if FLOATS[name].bits <= 8 else codes
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return bits.view(THEIRS[name]).astype(np.float64)


def hard_numbers(name: str) -> np.ndarray:
    """Float32 numbers at which rounding is decided: all of the format, all midpoints, and all their neighbours."""
    finite = np.unique(np.abs(decode_float_ref(codes_of(name), name)))
    finite = finite[np.isfinite(finite)]
    beyond = 2 * finite[-1] - finite[-2]
    places = np.concatenate([finite, (finite[1:] + finite[:-1]) / 2, [(finite[-1] + beyond) / 2, beyond]])
    with np.errstate(over="ignore"):
        places = places.astype(np.float32)
    around = np.concatenate([np.nextafter(places, np.float32(0)), places, np.nextafter(places, np.float32(np.inf))])
    special = np.array([np.inf, np.nan, 1e-45, 1.1754942e-38, 3.4028235e38], np.float32)
    positive = np.concatenate([around, special])
    return np.concatenate([positive, -positive])


def sixteen_bits() -> np.ndarray:
    """All numbers of float16 and bfloat16."""
    every = np.arange(1 << 16, dtype=np.uint16)
    with np.errstate(invalid="ignore"):
        return np.concatenate([every.view(dtype).astype(np.float32) for dtype in (np.float16, ml_dtypes.bfloat16)])


@pytest.mark.parametrize("name", FLOATS)
def test_every_code_means_what_ml_dtypes_reads(name):
    codes = codes_of(name)
    np.testing.assert_array_equal(decode_float_ref(codes, name), as_theirs(codes, name))
    np.testing.assert_array_equal(np.asarray(decode_float(jnp.asarray(codes), name)), as_theirs(codes, name))
    assert np.array_equal(np.signbit(decode_float_ref(codes, name)), codes >= 1 << (FLOATS[name].bits - 1))


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_every_number_of_a_format_gets_its_own_code(name, rounding):
    codes = codes_of(name)
    numbers = decode_float_ref(codes, name)
    codes, numbers = codes[~np.isnan(numbers)], numbers[~np.isnan(numbers)]
    random = np.full(len(codes), 2**32 - 1, np.uint32)
    assert np.array_equal(encode_float_ref(numbers, name, rounding=rounding, random=random), codes)


@pytest.mark.parametrize("name", FLOATS)
def test_every_hard_number_gets_the_code_that_ml_dtypes_gives_it(name):
    x = np.concatenate([hard_numbers(name), sixteen_bits()])
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(THEIRS[name])
    expected = expected.view(np.uint8 if FLOATS[name].bits <= 8 else np.uint16)
    found, nan = encode_float_ref(x, name), np.isnan(x)
    assert np.array_equal(found[~nan], expected[~nan])
    if FLOATS[name].bits <= 8:  # of 16-bit NaNs the payload is kept by others
        assert np.array_equal(found[nan] & 0x7F, expected[nan] & 0x7F)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("saturate", [False, True])
def test_the_jax_cast_gives_the_defined_code_bit_for_bit(name, rounding, saturate):
    x = np.concatenate([hard_numbers(name), sixteen_bits()])
    random = np.random.default_rng(0).integers(0, 2**32, len(x), np.uint32)
    options = {"rounding": rounding, "saturate": saturate, "random": random}
    options_too = partial(encode_float, format=name, rounding=rounding, saturate=saturate)
    cast = jax.jit(options_too, compiler_options=AS_USERS)
    assert np.array_equal(np.asarray(cast(x, random=random)), encode_float_ref(x, name, **options))


@pytest.mark.parametrize("name", FLOATS)
def test_saturation_only_changes_what_is_too_large(name):
    x, form = hard_numbers(name), FLOATS[name]
    plain, saturated = (decode_float_ref(encode_float_ref(x, name, saturate=s), name) for s in (False, True))
    inside = np.isfinite(plain)
    assert np.array_equal(plain[inside], saturated[inside])
    outside = ~inside & ~np.isnan(x)
    assert np.array_equal(saturated[outside], np.copysign(form.max, x[outside]))


@pytest.mark.parametrize("name", ["e4m3fn", "e2m1", "fp16"])
@given(x=hnp.arrays(np.float32, 8, elements=st.floats(-7, 7, width=32)), seed=st.integers(0, 2**32 - 1))
def test_the_code_is_that_of_a_neighbour_and_the_mean_of_many_draws_is_the_number(name, x, seed):
    nearest, zero = (
        decode_float_ref(encode_float_ref(x, name, rounding=r, saturate=True), name) for r in ROUNDINGS[:2]
    )
    assert np.all(np.abs(zero) <= np.abs(x))
    inside = np.abs(x) <= FLOATS[name].max
    assert np.all(np.abs(nearest - x)[inside] <= np.abs(zero - x)[inside])
    even = np.arange(4096, dtype=np.uint64) * (1 << 20)  # all random numbers there are, evenly
    random = np.broadcast_to(((even[:, None] + seed) % 2**32).astype(np.uint32), (4096, 8))
    wide = np.broadcast_to(x, (4096, 8))
    drawn = decode_float_ref(
        encode_float_ref(wide, name, rounding="stochastic", saturate=True, random=random), name
    )
    code = encode_float_ref(np.abs(x), name, rounding="toward zero")
    step = decode_float_ref(np.minimum(code + 1, FLOATS[name].largest), name) - decode_float_ref(code, name)
    assert np.all(np.abs(drawn.mean(axis=0) - x)[inside] <= step[inside] / 2048)


wide_cast: Any = encode_float  # not compiled, so that float64 stays what it is


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: encode_float_ref(np.zeros(2), "e4m2"), "format is 'e4m2', expected one of bf16, fp16"),
        (lambda: encode_float(jnp.zeros(2), "e4m3fn", rounding="stochastic"), "encode_float: random is missing"),
        (lambda: wide_cast(np.zeros(2), "e4m3fn"), "x is float64, expected float32, bfloat16 or float16"),
        (lambda: decode_float_ref(np.array([16]), "e2m1"), "codes reach 16 … 16, expected 0 … 15"),
    ],
)
def test_a_mistake_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
