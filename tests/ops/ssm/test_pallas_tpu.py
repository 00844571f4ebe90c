"""State-space duality for TPUs, interpreted: judged as anybody's kernel is."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from minillm import ops
from minillm.ops.ssm.cases import SSD
from minillm.ops.ssm.pallas_tpu import ssd_tpu, sums_of

ssd: Any = partial(ssd_tpu, interpret=True, chunk=4)


def judge(op, kernel, dtype, **options):
    report = ops.validate(op, ops.judge.compiled(kernel), dtype=dtype, shrink=False, **options)
    report.assert_ok()
    assert not report.uncovered
    return report


@pytest.mark.parametrize(("name", "dtype"), [("ragged", "float32"), ("every state", "bfloat16")])
def test_the_kernel_passes_the_judge(name, dtype):
    cases = tuple(case for case in SSD.cases if case.name == name)
    judge(replace(SSD, cases=cases, laws=()), ssd, dtype, seeds=1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_kernel_passes_the_judge_in_every_case(dtype):
    assert not judge(SSD, partial(ssd, chunk=128), dtype).unused


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
        ssd_tpu(*arrays)
    with pytest.raises(ValueError, match="ssd_tpu: chunk is 0, expected 1 or more"):
        ssd(*arrays, chunk=0)
    with pytest.raises(ValueError, match="ssd_tpu: x has h = 3 heads, not a multiple of B's g = 2"):
        ssd(*arrays[:3], x[:, :, :2], x[:, :, :2])
