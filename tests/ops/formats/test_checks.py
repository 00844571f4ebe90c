"""What would be rounded twice, or cut off in silence, is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minillm.ops import (
    decode_e8m0,
    decode_e8m0_ref,
    decode_float_ref,
    encode_blocks,
    encode_e8m0,
    encode_float,
    encode_ints,
    encode_nf4,
    pack_ref,
)

CASTS = {
    "encode_float": lambda x: encode_float(x, "e4m3fn"),
    "encode_e8m0": encode_e8m0,
    "encode_blocks": lambda x: encode_blocks(x, "mxfp4"),
    "encode_ints": lambda x: encode_ints(x, "int8"),
    "encode_nf4": encode_nf4,
}


@pytest.mark.parametrize("name", CASTS)
def test_casts_refuse_numbers_wider_than_float32(name):
    with (
        jax.enable_x64(True),
        pytest.raises(ValueError, match=f"{name}: x is float64, expected float32, bfloat16 or float16"),
    ):
        CASTS[name](jnp.ones(64, np.float64))


@pytest.mark.parametrize(
    "decode", [decode_e8m0_ref, lambda c: decode_float_ref(c, "e2m1"), lambda c: pack_ref(c, 4)]
)
def test_definitions_refuse_codes_that_are_no_integers_or_have_too_many_bits(decode):
    with pytest.raises(ValueError, match="codes are float64, expected integers"):
        decode(np.array([1.5, 2.0]))
    with pytest.raises(ValueError, match=r"codes reach 1 … 256, expected 0 … (15|255)"):
        decode(np.array([1, 256]))


def test_powers_of_two_are_decoded_from_bytes_alone():
    with pytest.raises(ValueError, match="decode_e8m0: codes are int32, expected uint8"):
        decode_e8m0(jnp.array([300], np.int32))
