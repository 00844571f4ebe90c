"""The definitions beside gfloat, an independent reading of the OCP specifications."""

import numpy as np
import pytest

from minillm.ops import BLOCKS, FLOATS, decode_blocks_ref, decode_float_ref, encode_blocks_ref, encode_float_ref

pytestmark = pytest.mark.oracle

THEIRS = {
    "e4m3fn": "format_info_ocp_e4m3",
    "e5m2": "format_info_ocp_e5m2",
    "e3m2": "format_info_ocp_e3m2",
    "e2m3": "format_info_ocp_e2m3",
    "e2m1": "format_info_ocp_e2m1",
    "fp16": "format_info_binary16",
    "bf16": "format_info_bfloat16",
}
BLOCK_FORMATS = {
    "mxfp8_e4m3": "format_info_mxfp8_e4m3",
    "mxfp8_e5m2": "format_info_mxfp8_e5m2",
    "mxfp6_e3m2": "format_info_mxfp6_e3m2",
    "mxfp6_e2m3": "format_info_mxfp6_e2m3",
    "mxfp4": "format_info_mxfp4_e2m1",
}
MODES = {"nearest": "TiesToEven", "toward zero": "TowardZero"}


@pytest.fixture(scope="module")
def gfloat():
    import gfloat.formats  # pyright: ignore[reportMissingImports]

    return gfloat


def numbers(name: str) -> np.ndarray:
    """All of the format up to 16 bits, the middles between them, both neighbours of these, and larger ones."""
    own = np.unique(decode_float_ref(np.arange(1 << FLOATS[name].bits), name))
    own = own[np.isfinite(own)]
    middles = (own[1:] + own[:-1]) / 2
    beyond = own[-1] * np.array([1 + 2.0**-12, 1.03125, 1.0625, 1.125, 1.25, 2, 1000])
    edge = np.concatenate([beyond, -beyond])
    return np.concatenate([own, middles, np.nextafter(middles, -np.inf), np.nextafter(middles, np.inf), edge])


@pytest.mark.parametrize("saturate", [False, True])
@pytest.mark.parametrize("rounding", MODES)
@pytest.mark.parametrize("name", THEIRS)
def test_numbers_become_what_gfloat_makes_of_them(gfloat, name, rounding, saturate):
    x = numbers(name)
    if FLOATS[name].top == "finite" and not saturate:
        x = x[np.abs(x) <= FLOATS[name].max]  # beyond it gfloat raises
    found = decode_float_ref(encode_float_ref(x, name, rounding=rounding, saturate=saturate), name)
    form = getattr(gfloat.formats, THEIRS[name])
    theirs = gfloat.round_ndarray(form, x, gfloat.RoundMode[MODES[rounding]], sat=saturate)
    assert np.array_equal(found, theirs, equal_nan=True)


@pytest.mark.parametrize("name", THEIRS)
def test_codes_mean_what_gfloat_reads(gfloat, name):
    codes, form = np.arange(1 << FLOATS[name].bits), getattr(gfloat.formats, THEIRS[name])
    assert np.array_equal(decode_float_ref(codes, name), gfloat.decode_ndarray(form, codes), equal_nan=True)


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_blocks_become_what_gfloat_makes_of_them(gfloat, name):
    rng = np.random.default_rng(0)
    blocks = rng.normal(size=(40, BLOCKS[name].size)) * np.exp2(rng.integers(-20, 20, (40, 1)))
    blocks = blocks.astype(np.float32)
    blocks[0], blocks[1, 1:], blocks[2] = 0, 0, np.exp2(rng.integers(-3, 3, 32))
    form = getattr(gfloat.formats, BLOCK_FORMATS[name])
    for block in blocks:
        theirs = gfloat.quantize_block(form, block.astype(np.float64), gfloat.compute_scale_amax)
        assert np.array_equal(decode_blocks_ref(encode_blocks_ref(block, name, "floor"), name), theirs)
