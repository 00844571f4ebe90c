"""The selective scan for GPUs, interpreted: judged as anybody's kernel is."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from agreement import QUICK

from minillm import ops
from minillm.ops.ssm.cases import SELECTIVE_SCAN
from minillm.ops.ssm.pallas_gpu import selective_scan_gpu

scan = jax.jit(
    partial(selective_scan_gpu, interpret=True),
    static_argnames=("softplus", "return_states", "i_block"),
    compiler_options=QUICK,
)


def judge(op, dtype, **options):
    report = ops.validate(op, scan, dtype=dtype, shrink=False, **options)
    report.assert_ok()
    assert not report.uncovered
    return report


def some(*names):
    """The op with these cases alone."""
    return replace(SELECTIVE_SCAN, cases=tuple(case for case in SELECTIVE_SCAN.cases if case.name in names))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_scan_passes_the_judge(dtype):
    op = some("ragged", "every state")
    judge(replace(op, laws=(), styles=op.styles if dtype == "float32" else {}), dtype, seeds=1)


def test_the_scan_obeys_the_laws():
    report = judge(replace(some("ragged"), styles={}), "float32", seeds=1)
    assert not report.unused


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_scan_passes_the_judge_in_every_case(dtype):
    assert not judge(SELECTIVE_SCAN, dtype).unused


def test_channels_beyond_a_tile_are_computed_by_another_program():
    rng = np.random.default_rng(0)
    x, dt = rng.normal(size=(1, 3, 70)).astype(np.float32), rng.uniform(size=(1, 3, 70)).astype(np.float32)
    A, B = -rng.uniform(size=(70, 5)).astype(np.float32), rng.normal(size=(1, 3, 5)).astype(np.float32)
    y, state = scan(x, dt, A, B, B, i_block=32)
    ideal, last = ops.selective_scan_ref(x, dt, A, B, B)
    assert np.allclose(y, ideal, atol=1e-5)
    assert np.allclose(state, last, atol=1e-5)


def test_a_block_that_is_no_tile_is_refused():
    x = np.zeros((1, 1, 3), np.float32)
    with pytest.raises(
        ValueError, match="selective_scan_gpu: i_block is 24, expected a power of two of at least 16"
    ):
        scan(x, x, np.zeros((3, 2), np.float32), x[..., :2], x[..., :2], i_block=24)
