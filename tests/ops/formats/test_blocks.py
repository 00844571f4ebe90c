"""Numbers in blocks: near what they were, the same bits from NumPy and from JAX, and by hand."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import AS_USERS
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.ops import BLOCKS, decode_blocks, decode_blocks_ref, encode_blocks, encode_blocks_ref

TINY = np.finfo(np.float32).tiny
POLICIES: dict[str, tuple] = {name: ("absmax",) if name == "nvfp4" else ("floor", "ceil") for name in BLOCKS}
KINDS: list[tuple[str, Any]] = [(name, policy) for name in BLOCKS for policy in POLICIES[name]]
compiled = partial(jax.jit, compiler_options=AS_USERS)
CASTS = {kind: compiled(partial(encode_blocks, format=kind[0], policy=kind[1])) for kind in KINDS}
BACK = {name: compiled(partial(decode_blocks, format=name)) for name in BLOCKS}
seeds = st.integers(0, 2**32 - 1)


def drawn(seed: int, name: str) -> np.ndarray:
    """Blocks of all sizes of numbers, zeros, subnormals and equal numbers among them."""
    rng, size = np.random.default_rng(seed), BLOCKS[name].size
    x = rng.normal(size=(6, 4, size)) * np.exp2(rng.integers(-20, 20, (6, 4, 1)))
    x[0] *= 2.0**-120
    x[1] *= 2.0**100
    x[2, 0], x[2, 1], x[2, 2, 1:] = 0, -1.75, 0
    x[3] = np.round(x[3])
    return x.reshape(6, -1).astype(np.float32)


@pytest.mark.parametrize(("name", "policy"), KINDS)
@given(seed=seeds)
@settings(max_examples=20)
def test_jax_gives_the_defined_bits(name, policy, seed):
    x = drawn(seed, name)
    expected, found = encode_blocks_ref(x, name, policy), CASTS[name, policy](x)
    for one, other in zip(expected, found, strict=True):
        assert (one is None and other is None) or np.array_equal(np.asarray(one), np.asarray(other))
    numbers = decode_blocks_ref(expected, name)
    with np.errstate(over="ignore"):
        rounded = np.where(np.abs(numbers) < TINY, 0, numbers).astype(np.float32)
    assert np.array_equal(np.asarray(BACK[name](expected)), rounded)


@pytest.mark.parametrize("name", [name for name in BLOCKS if name != "nvfp4"])
@given(seed=seeds)
@settings(max_examples=10)
def test_no_number_is_further_than_half_a_step_from_what_it_was(name, seed):
    """The step of the largest numbers; with the smallest exponent that fits, nothing saturates."""
    x, form = drawn(seed, name), BLOCKS[name]
    coded = encode_blocks_ref(x, name, "ceil")
    error = np.abs(decode_blocks_ref(coded, name) - x)
    bits = form.element_format.m if form.element_format else 6
    step = 2.0 ** (np.floor(np.log2(form.max)) - bits) * np.exp2(coded.scales.astype(np.float64) - 127)
    assert np.all(error <= np.repeat(step, form.size, axis=-1) / 2)


@pytest.mark.parametrize("name", BLOCKS)
@given(seed=seeds, power=st.integers(-10, 10))
@settings(max_examples=10)
def test_powers_of_two_only_move_the_scales(name, seed, power):
    x = drawn(seed, name)[2:]
    one, other = encode_blocks_ref(x, name), encode_blocks_ref(x * np.float32(2.0**power), name)
    assert np.array_equal(one.elements, other.elements)
    assert np.array_equal(decode_blocks_ref(one, name) * 2.0**power, decode_blocks_ref(other, name))


@pytest.mark.parametrize("name", BLOCKS)
@given(seed=seeds)
@settings(max_examples=10)
def test_blocks_do_not_know_of_each_other_and_decoded_ones_are_coded_as_before(name, seed):
    x, size = drawn(seed, name), BLOCKS[name].size
    order = np.random.default_rng(seed).permutation(x.size // size)
    coded = encode_blocks_ref(x.reshape(-1), name)
    moved = encode_blocks_ref(x.reshape(-1, size)[order].reshape(-1), name)
    assert np.array_equal(coded.elements.reshape(-1, size)[order].reshape(-1), moved.elements)
    assert np.array_equal(coded.scales[order], moved.scales)
    if name != "nvfp4":  # whose scales are rounded
        once = decode_blocks_ref(coded, name)
        assert np.array_equal(decode_blocks_ref(encode_blocks_ref(once, name, "ceil"), name), once)


def test_tensors_of_nvfp4_full_of_ties_get_the_defined_codes_compiled_and_not():
    rng = np.random.default_rng(0)
    ties = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6], np.float32)
    for _ in range(100):
        scale = np.float32(rng.integers(1, 448)) * np.float32(rng.normal())
        x = rng.choice(ties, (2, 32)) * scale
        x[1] *= np.float32(2.0**-100)
        expected = encode_blocks_ref(x, "nvfp4")
        for found in (CASTS["nvfp4", "absmax"](x), encode_blocks(jnp.asarray(x), "nvfp4")):
            assert np.array_equal(found.elements, expected.elements)
            assert np.array_equal(found.scales, expected.scales)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tensor_scale": None}, "tensor_scale is missing for nvfp4"),
        (
            {"scales": np.zeros((1, 1), np.uint8)},
            r"scales are \[1, 1\] for elements \[2, 32\], expected one for each 16",
        ),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(change, message):
    coded = encode_blocks_ref(np.ones((2, 32), np.float32), "nvfp4")._replace(**change)
    for decode in (decode_blocks_ref, decode_blocks):
        with pytest.raises(ValueError, match=message):
            decode(coded, "nvfp4")


def test_a_block_of_mxfp4_by_hand():
    x = np.zeros(32, np.float32)
    x[:6] = [8, 7, 5, -3, 1, 0.25]  # the largest is 2^3, e2m1's largest exponent is 2: E = 1, so numbers halve
    coded = encode_blocks_ref(x, "mxfp4")
    assert coded.scales.tolist() == [128]
    assert coded.elements[:6].tolist() == [
        6,
        6,
        4,
        11,
        1,
        0,
    ]  # 4, 3.5 -> 4 (even), 2.5 -> 2 (even), -1.5, 0.5, 0.125
    assert decode_blocks_ref(coded, "mxfp4")[:6].tolist() == [8, 8, 4, -3, 1, 0]


def test_a_tensor_of_nvfp4_by_hand():
    x = np.zeros(32, np.float32)
    x[0], x[16:20] = 6 * 448, [6, 3, -1, 0.1]  # t = 1; the second block's scale is 1
    coded = encode_blocks_ref(x, "nvfp4")
    assert coded.tensor_scale == 1
    assert coded.scales.tolist() == [0x7E, 0x38]  # 448 and 1 in e4m3fn
    assert coded.elements[[0, 16, 17, 18, 19]].tolist() == [7, 7, 5, 10, 0]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros(33), r"x has shape \[33\], expected a last axis of a multiple of 32"),
        (np.zeros((2, 0)), r"x has shape \[2, 0\]"),
        (np.float32(1), r"x has shape \[\]"),
        (np.array([np.nan] * 32), "x holds NaN or infinity, expected finite numbers"),
        (np.array([np.inf] * 32), "x holds NaN or infinity"),
    ],
)
def test_numbers_that_make_no_blocks_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        encode_blocks_ref(x, "mxfp4")


def test_a_format_that_is_none_is_refused():
    with pytest.raises(ValueError, match="format is 'mxfp5', expected one of mxfp8_e5m2, mxfp8_e4m3"):
        encode_blocks(jnp.zeros(32), "mxfp5")
