"""Products with weights of few bits for GPUs, interpreted: judged as anybody's kernel is."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import QUICK

from minillm import ops
from minillm.ops.qmatmul.cases import WEIGHT_ONLY
from minillm.ops.qmatmul.pallas_gpu import weight_only_matmul_gpu

matmul = jax.jit(partial(weight_only_matmul_gpu, interpret=True), compiler_options=QUICK)
FOUR_BITS = {"o": (2, 4, 16, 32, 64, 128, 4096), "style": ("largest codes",)}  # cancelling codes go up to 8


def two_in_a_byte(x, w, w_scale, *, w_zero=None):
    """The op's codes have four bits, but come as bytes: those below 0 as int8, those with zeros as uint8."""
    return matmul(x, w.astype(jnp.int4 if w.dtype == jnp.int8 else jnp.uint4), w_scale, w_zero=w_zero)


def judge(op, kernel, dtype, **options):
    report = ops.validate(op, kernel, dtype=dtype, shrink=False, **options)
    report.assert_ok()
    return report


@pytest.mark.parametrize(("first", "dtype"), [(1, "float32"), (5, "bfloat16")])
def test_eight_bits_pass_the_judge(first, dtype):
    report = judge(replace(WEIGHT_ONLY, cases=WEIGHT_ONLY.cases[first::8]), matmul, dtype, seeds=1)
    assert not report.uncovered


@pytest.mark.parametrize(("group", "dtype"), [(128, "float32"), (16, "bfloat16")])
def test_four_bits_pass_the_judge(group, dtype):
    cases = tuple(case for case in WEIGHT_ONLY.cases if case.sizes["o"] == group)
    report = judge(replace(WEIGHT_ONLY, cases=cases), two_in_a_byte, dtype, seeds=1, supports=FOUR_BITS)
    assert [*report.uncovered] == ["cancelling inputs"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kernel", [matmul, two_in_a_byte], ids=["eight bits", "four bits"])
def test_products_pass_the_judge_in_every_case(kernel, dtype):
    supports = FOUR_BITS if kernel is two_in_a_byte else {}
    report = judge(WEIGHT_ONLY, kernel, dtype, supports=supports)
    assert not report.unused
    assert set(report.uncovered.values()) == ({"o = 1", "o = 7", "style"} if supports else set())


@pytest.mark.parametrize("kind", ["int4", "uint4"])
def test_halves_of_bytes_are_the_codes_in_their_order(kind):
    codes = np.arange(16) - (8 if kind == "int4" else 0)
    w = jnp.asarray(np.stack([codes, codes[::-1]])).astype(kind)
    y = matmul(np.eye(16, dtype=np.float32), w, np.ones((2, 1), np.float32))
    assert np.array_equal(y, np.stack([codes, codes[::-1]]).T)


@pytest.mark.parametrize(
    ("w", "groups", "message"),
    [
        (jnp.zeros((3, 12), jnp.int16), 2, "w is int16, expected one of int8, uint8, int4, uint4"),
        (jnp.zeros((3, 12), jnp.int8), 5, "12 columns of int8 and 5 scales for a row, expected groups of whole"),
        (jnp.zeros((3, 12), jnp.int4), 4, "12 columns of int4 and 4 scales for a row, expected groups of whole"),
    ],
)
def test_codes_that_do_not_fit_are_refused(w, groups, message):
    with pytest.raises(ValueError, match=f"weight_only_matmul_gpu: {message}"):
        matmul(np.zeros((2, 12), np.float32), w, np.ones((3, groups), np.float32))
