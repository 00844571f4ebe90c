"""Codes in bytes: nothing is lost, in the order that is written down."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.ops import pack, pack_ref, sign_extended, unpack, unpack_ref


@given(bits=st.integers(1, 8), rows=st.integers(1, 3), bytes_=st.integers(1, 4), seed=st.integers(0, 99))
@settings(max_examples=12)
def test_what_is_packed_comes_out_again_and_jax_packs_as_defined(bits, rows, bytes_, seed):
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (rows, 8 * bytes_)).astype(np.uint8)
    data = pack_ref(codes, bits)
    assert data.shape == (rows, bits * bytes_)
    assert np.array_equal(unpack_ref(data, bits), codes)
    assert np.array_equal(pack(jnp.asarray(codes), bits), data)
    assert np.array_equal(unpack(jnp.asarray(data), bits), codes)


def test_the_first_of_two_nibbles_is_the_low_one():
    assert pack_ref(np.array([1, 2, 15, 0]), 4).tolist() == [0x21, 0x0F]
    assert pack_ref(np.array([0b000001, 0b000010, 0b000011, 0b100000]), 6).tolist() == [0x81, 0x30, 0x80]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_negative_codes_come_out_as_they_went_in(bits):
    codes = np.arange(-(1 << (bits - 1)), 1 << (bits - 1), dtype=np.int8)
    assert np.array_equal(sign_extended(unpack(pack(jnp.asarray(codes), bits), bits), bits), codes)


def test_rows_that_fill_no_whole_bytes_are_refused():
    with pytest.raises(ValueError, match=r"pack: 4 bits for codes of shape \[3\], expected rows that fill whole"):
        pack(jnp.zeros(3, jnp.uint8), 4)
    with pytest.raises(ValueError, match=r"unpack: 6 bits in bytes of shape \[4\]"):
        unpack(jnp.zeros(4, jnp.uint8), 6)
    with pytest.raises(ValueError, match="codes reach 0 … 16, expected 0 … 15"):
        pack_ref(np.array([0, 16]), 4)
