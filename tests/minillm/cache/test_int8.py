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
from minillm.cache.int8 import coded, decoded

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)


@given(hnp.arrays(np.float32, (3, 8), elements=FLOATS))
def test_no_channel_is_further_than_half_a_step_from_what_it_was(x):
    step = np.abs(x.astype(np.float64)).max(axis=-1, keepdims=True) / 127
    error = np.abs(np.asarray(decoded(coded(jnp.asarray(x))), np.float64) - x)
    assert np.all(error <= step * (0.5 + 127 * 2.0**-23) + 2.0**-126)


@given(hnp.arrays(np.float32, (2, 6), elements=FLOATS))
def test_coding_what_was_decoded_changes_no_code(x):
    once = coded(jnp.asarray(x))
    again = coded(decoded(once))
    largest = np.abs(x).max(axis=-1)
    fit = (largest > 1e-30) | (largest == 0)  # a scale below the normal numbers has few digits left
    assert np.array_equal(np.asarray(once)[fit, :-4], np.asarray(again)[fit, :-4])


def test_a_row_is_its_codes_and_the_bytes_of_its_scale_by_hand():
    row = np.asarray(coded(jnp.array([127.0, -63.5, 0.5, 1.5, 2.5, 0.0])))
    assert row.tolist() == [127, -64, 0, 2, 2, 0, *np.frombuffer(np.float32(1.0).tobytes(), np.int8)]
    assert np.asarray(decoded(jnp.zeros(7, jnp.int8))).tolist() == [0.0] * 3


def test_what_is_not_a_number_stays_none():
    assert np.all(np.isnan(decoded(coded(jnp.array([1.0, jnp.nan])))))


@pytest.mark.usefixtures("quick_programs")
@pytest.mark.parametrize(("kind", "window"), [("contiguous", None), ("paged", None), ("contiguous", 3)])
def test_the_laws_hold_in_eight_bits(kind, window):
    with jax.enable_x64(True):  # so that no sum's rounding can turn a code into its neighbour
        spec = replace(laws.SPEC, kind=kind, dtype="int8")
        toy = toy_attention(np.random.default_rng(0), window=window)

        def inputs(rng, shape):
            return rng.normal(size=(*shape, 16))

        laws.check_schedules(toy, inputs, spec=spec, tolerance=1e-6, examples=4, all_slots=False)
        laws.check_donation(toy, inputs, spec=spec)
