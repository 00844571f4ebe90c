"""Keys and values in eight bits are the nearest codes, and the memory around them is still lawful."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from toys import toy_attention

from minillm import laws
from minillm.cache import coded as module
from minillm.ops import decode_float_ref, encode_float_ref, encode_ints_ref
from minillm.ops.formats.rounding import divided_ref, normal_ref

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
FORMATS = ("int8", "fp8")
SLOWER = (("int8", "contiguous", 3), ("int8", "paged", None), ("fp8", "contiguous", 3), ("fp8", "contiguous", None))
coded, decoded = (jax.jit(one, static_argnums=1) for one in (module.coded, module.decoded))


def by_hand(x: np.ndarray, format: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of each row of x, by the definitions of the ops."""
    if format == "int8":
        return encode_ints_ref(x, "int8")[:2]
    scales = normal_ref(np.abs(x).max(axis=-1, keepdims=True) * np.float32(1 / 448))
    return encode_float_ref(divided_ref(x, scales[:, 0]), "e4m3fn", saturate=True).astype(np.uint8), scales


@pytest.mark.parametrize("format", FORMATS)
@given(hnp.arrays(np.float32, (3, 8), elements=FLOATS))
def test_a_row_is_the_codes_of_the_ops_and_the_bytes_of_its_scale(format, x):
    codes, scales = by_hand(x, format)
    assert np.array_equal(coded(x, format), np.hstack([codes.view(np.int8), scales.view(np.int8)]))


@given(hnp.arrays(np.float32, (3, 8), elements=FLOATS))
def test_no_channel_in_int8_is_further_than_half_a_step_from_what_it_was(x):
    step = np.abs(x.astype(np.float64)).max(axis=-1, keepdims=True) / 127
    error = np.abs(np.asarray(decoded(coded(x, "int8"), "int8"), np.float64) - x)
    assert np.all(error <= step * (0.5 + 127 * 2.0**-23) + 2.0**-126)


@given(hnp.arrays(np.float32, (3, 8), elements=FLOATS))
def test_no_channel_in_fp8_is_further_than_a_sixteenth_or_half_the_least_step_from_what_it_was(x):
    step = np.abs(x.astype(np.float64)).max(axis=-1, keepdims=True) / 448
    error = np.abs(np.asarray(decoded(coded(x, "fp8"), "fp8"), np.float64) - x)
    assert np.all(error <= np.maximum(np.abs(x) / 16, step * 2.0**-10) * (1 + 2.0**-20) + 2.0**-126)


@pytest.mark.parametrize("format", FORMATS)
@given(hnp.arrays(np.float32, (2, 6), elements=FLOATS))
def test_coding_what_was_decoded_changes_no_code(format, x):
    once = coded(x, format)
    again = coded(decoded(once, format), format)
    largest = np.abs(x).max(axis=-1)
    fit = (largest > 1e-30) | (largest == 0)  # a scale below the normal numbers has few digits left
    assert np.array_equal(np.asarray(once)[fit, :-4], np.asarray(again)[fit, :-4])


def test_rows_by_hand():
    one = [*np.frombuffer(np.float32(1.0).tobytes(), np.int8)]
    row = np.asarray(coded(jnp.array([127.0, -63.5, 0.5, 1.5, 2.5, 0.0]), "int8"))
    assert row.tolist() == [127, -64, 0, 2, 2, 0, *one]
    row = np.asarray(coded(jnp.array([448.0, -1.0, 17.0, 19.0, 0.0]), "fp8"))
    assert decode_float_ref(row[:5].view(np.uint8), "e4m3fn").tolist() == [448.0, -1.0, 16.0, 20.0, 0.0]
    assert row[5:].tolist() == one


@pytest.mark.parametrize("format", FORMATS)
def test_a_row_of_zero_bytes_is_zero_and_what_is_not_a_number_stays_none(format):
    assert np.asarray(decoded(jnp.zeros(7, jnp.int8), format)).tolist() == [0.0] * 3
    assert np.all(np.isnan(decoded(coded(jnp.array([1.0, jnp.nan]), format), format)))


@pytest.mark.usefixtures("quick_programs")
@pytest.mark.parametrize(
    ("format", "kind", "window"),
    [
        ("int8", "contiguous", None),
        ("fp8", "paged", None),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in SLOWER),
    ],
)
def test_the_laws_hold_in_eight_bits(format, kind, window):
    with jax.enable_x64(True):  # so that no sum's rounding can turn a code into its neighbour
        spec = replace(laws.SPEC, kind=kind, dtype=format)
        toy = toy_attention(np.random.default_rng(0), window=window)

        def inputs(rng, shape):
            return rng.normal(size=(*shape, 16))

        laws.check_schedules(toy, inputs, spec=spec, tolerance=1e-6, examples=4, all_slots=False)
        laws.check_donation(toy, inputs, spec=spec)
