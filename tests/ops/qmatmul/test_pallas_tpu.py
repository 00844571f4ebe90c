"""Products with weights of few bits for TPUs, interpreted: judged as anybody's kernel is."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm import ops
from minillm.ops.qmatmul.cases import WEIGHT_ONLY
from minillm.ops.qmatmul.pallas_tpu import groups_in_tile, weight_only_matmul_tpu

matmul: Any = partial(weight_only_matmul_tpu, interpret=True, t_block=2, f_block=2, d_block=64)


def two_in_a_byte(x, w, w_scale, *, w_zero=None):
    """The op's codes have four bits, but come as bytes: those below 0 as int8, those with zeros as uint8."""
    return matmul(x, w.astype(jnp.int4 if w.dtype == jnp.int8 else jnp.uint4), w_scale, w_zero=w_zero)


def judge(op, kernel, dtype, **options):
    report = ops.validate(op, ops.judge.compiled(kernel), dtype=dtype, shrink=False, **options)
    report.assert_ok()
    return report


@pytest.mark.parametrize(
    ("kernel", "dtype"), [(matmul, "float32"), (two_in_a_byte, "bfloat16")], ids=["eight bits", "four bits"]
)
def test_products_pass_the_judge(kernel, dtype):
    """Groups that are several to a tile, and larger than it; a tile that reaches past the end."""
    cases = tuple(case for case in WEIGHT_ONLY.cases if case.name in ("5 2 3 16", "4 4 2 128, zero points"))
    assert not judge(replace(WEIGHT_ONLY, cases=cases, laws=()), kernel, dtype, seeds=1).uncovered


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_of_eight_bits_pass_the_judge_in_every_case(dtype):
    report = judge(WEIGHT_ONLY, matmul, dtype)
    assert not report.unused
    assert not report.uncovered


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_of_four_bits_pass_the_judge_in_every_case(dtype):
    report = judge(WEIGHT_ONLY, two_in_a_byte, dtype, supports={"style": ("largest codes",)})
    assert [*report.uncovered] == ["cancelling inputs"]  # their codes go up to 8


@given(c=st.integers(1, 40), size=st.integers(1, 200), d_block=st.integers(1, 64))
def test_tiles_are_whole_groups_or_equal_parts_of_one_and_fill_all_columns(c, size, d_block):
    groups, width = groups_in_tile(c, size, d_block)
    assert groups * width <= d_block
    assert size % width == 0
    assert width == size or groups == 1
    assert c * size % (groups * width) == 0


def test_a_tile_is_as_wide_as_it_may_be():
    assert groups_in_tile(32, 128, 512) == (4, 128)
    assert groups_in_tile(1, 4096, 512) == (1, 512)
    assert groups_in_tile(11, 128, 512) == (1, 128)


def test_only_who_asks_for_it_is_interpreted_and_what_cannot_be_is_refused():
    x, w = jnp.zeros((2, 10)), jnp.zeros((3, 10), jnp.int8)
    with pytest.raises(ValueError, match="Only interpret mode is supported on CPU"):
        jax.jit(weight_only_matmul_tpu)(x, w, jnp.ones((3, 2)))
    with pytest.raises(
        ValueError, match="weight_only_matmul_tpu: 10 columns and 4 scales for a row, expected a div"
    ):
        matmul(x, w, jnp.ones((3, 4)))
    with pytest.raises(ValueError, match="weight_only_matmul_tpu: blocks are 2, 0 and 64, expected at least 1"):
        matmul(x, w, jnp.ones((3, 2)), f_block=0)
