"""Recurrences for TPUs, interpreted: judged as anybody's kernels are."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import QUICK

from minillm import ops
from minillm.ops.ssm.cases import SELECTIVE_SCAN, SSD
from minillm.ops.ssm.pallas_tpu import ssd_tpu, sums_of
from minillm.ops.ssm.pallas_tpu_scan import selective_scan_tpu

ssd: Any = partial(ssd_tpu, interpret=True, chunk=4)
scan: Any = partial(selective_scan_tpu, interpret=True, i_block=4)


def judge(op, kernel, dtype, **options):
    report = ops.validate(op, ops.judge.compiled(kernel), dtype=dtype, shrink=False, **options)
    report.assert_ok()
    assert not report.uncovered
    return report


BOTH = pytest.mark.parametrize(("op", "kernel"), [(SELECTIVE_SCAN, scan), (SSD, ssd)], ids=["scan", "ssd"])


@BOTH
@pytest.mark.parametrize(("name", "dtype"), [("ragged", "float32"), ("every state", "bfloat16")])
def test_kernels_pass_the_judge(op, kernel, name, dtype):
    cases = tuple(case for case in op.cases if case.name == name)
    judge(replace(op, cases=cases, laws=()), kernel, dtype, seeds=1)


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kernels_pass_the_judge_in_every_case(op, kernel, dtype):
    kernel = kernel if kernel is scan else partial(kernel, chunk=128)
    assert not judge(op, kernel, dtype).unused


def test_the_state_goes_from_chunk_to_chunk():
    """A chunk of the scan is 128 tokens."""
    rng = np.random.default_rng(0)
    x, dt, B, C = (rng.uniform(size=(1, 150, n)).astype(np.float32) for n in (5, 5, 3, 3))
    A = -rng.uniform(size=(5, 3)).astype(np.float32)
    y, state = jax.jit(scan, compiler_options=QUICK)(x, dt, A, B, C)
    ideal, last = ops.selective_scan_ref(x, dt, A, B, C)
    assert np.allclose(y, ideal, rtol=1e-5)
    assert np.allclose(state, last, rtol=1e-5)


def test_sums_of_small_steps_are_not_lost_beside_a_large_one():
    """Between its neighbours float32 knows all of a decay, whatever came before."""
    log_decay = np.array([[-1e6, -0.1, -0.2, -0.3]], np.float32)
    between, from_start, to_end = sums_of(jnp.asarray(log_decay))
    assert np.allclose(between[1], [0, 0, -0.2, -0.5], rtol=1e-6)
    assert np.allclose(from_start, np.cumsum(log_decay), rtol=1e-6)
    assert np.allclose(to_end, [[-0.6, -0.5, -0.3, 0]], rtol=1e-6)


def test_only_who_asks_for_it_is_interpreted_and_what_cannot_be_is_refused():
    x, one = jnp.zeros((1, 2, 3, 4)), jnp.ones((1, 2, 3))
    arrays = x, one, one[0, 0], x[:, :, :1], x[:, :, :1]
    with pytest.raises(ValueError, match="Only interpret mode is supported on CPU"):
        jax.jit(ssd_tpu)(*arrays)
    with pytest.raises(ValueError, match="ssd_tpu: chunk is 0, expected 1 or more"):
        ssd(*arrays, chunk=0)
    with pytest.raises(ValueError, match="ssd_tpu: x has h = 3 heads, not a multiple of B's g = 2"):
        ssd(*arrays[:3], x[:, :, :2], x[:, :, :2])
    with pytest.raises(ValueError, match="Only interpret mode is supported on CPU"):
        jax.jit(selective_scan_tpu)(one, one, x[0, 0], x[:, :, 0], x[:, :, 0])
    with pytest.raises(ValueError, match="selective_scan_tpu: i_block is 0, expected 1 or more"):
        scan(one, one, x[0, 0], x[:, :, 0], x[:, :, 0], i_block=0)
