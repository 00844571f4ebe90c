"""Recurrences for GPUs, interpreted: judged as anybody's kernels are."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import QUICK

from minillm import ops
from minillm.ops.ssm.cases import SELECTIVE_SCAN, SSD
from minillm.ops.ssm.pallas_gpu import selective_scan_gpu
from minillm.ops.ssm.pallas_gpu_ssd import decays, ssd_gpu


def interpreted(kernel, *names):
    return jax.jit(partial(kernel, interpret=True), static_argnames=names, compiler_options=QUICK)


scan = interpreted(selective_scan_gpu, "softplus", "return_states", "i_block")
ssd = interpreted(ssd_gpu, "softplus", "return_states", "chunk", "k_block")


def judge(op, kernel, dtype, **options):
    report = ops.validate(op, kernel, dtype=dtype, shrink=False, **options)
    report.assert_ok()
    assert not report.uncovered
    return report


def some(op, *names):
    """The op with these cases alone."""
    return replace(op, cases=tuple(case for case in op.cases if case.name in names))


def brief(op, dtype):
    """The op with its laws of equal bits (the others follow from the definition's), and nasty, in float32 alone."""
    wide = dtype == "float32"
    return replace(op, laws=tuple(law for law in op.laws if law.exact and wide), styles=op.styles if wide else {})


@pytest.mark.parametrize(("name", "dtype"), [("ragged", "float32"), ("every state", "bfloat16")])
def test_the_scan_passes_the_judge(name, dtype):
    judge(brief(some(SELECTIVE_SCAN, name), dtype), scan, dtype, seeds=1)


@pytest.mark.parametrize(("name", "dtype"), [("a chunk and one", "float32"), ("every state", "bfloat16")])
def test_ssd_passes_the_judge(name, dtype):
    judge(brief(some(SSD, name), dtype), ssd, dtype, seeds=1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("op", "kernel"), [(SELECTIVE_SCAN, scan), (SSD, ssd)], ids=["scan", "ssd"])
def test_kernels_pass_the_judge_in_every_case(op, kernel, dtype):
    assert not judge(op, kernel, dtype).unused


def numbers(*shape):
    return np.random.default_rng(sum(shape)).uniform(size=shape).astype(np.float32)


def test_channels_beyond_a_tile_are_computed_by_another_program():
    x, dt, A, B = numbers(1, 3, 70), numbers(1, 3, 70), -numbers(70, 5), numbers(1, 3, 5)
    y, state = scan(x, dt, A, B, B, i_block=32)
    ideal, last = ops.selective_scan_ref(x, dt, A, B, B)
    assert np.allclose(y, ideal, atol=1e-5)
    assert np.allclose(state, last, atol=1e-5)


def test_heads_and_channels_of_many_programs_find_their_own():
    x, dt, A, B, C = (
        numbers(2, 40, 4, 20),
        numbers(2, 40, 4),
        -numbers(4),
        numbers(2, 40, 2, 18),
        numbers(2, 40, 2, 18),
    )
    y, state = ssd(x, dt, A, B, C, k_block=16, chunk=32)
    ideal, last = ops.ssd_ref(x, dt, A, B, C)
    assert np.allclose(y, ideal, rtol=1e-5)
    assert np.allclose(state, last, rtol=1e-5)


def test_sums_of_small_steps_are_not_lost_beside_a_large_one():
    """Between its neighbours float32 knows all of a decay, whatever came before."""
    sums = jax.jit(decays, compiler_options=QUICK)(jnp.array([-1e6, -0.1, -0.2, -0.3]))
    between, from_start, to_end, through = (np.asarray(one) for one in sums)
    assert np.allclose(between[:, 1], [0, 1, np.exp(-0.2), np.exp(-0.5)], rtol=1e-6)
    assert np.allclose(to_end, np.exp([-0.6, -0.5, -0.3, 0]), rtol=1e-6)
    assert not from_start.any()
    assert through == 0


def test_only_who_asks_for_it_is_interpreted_and_what_cannot_be_is_refused():
    x, one = jnp.zeros((1, 2, 3, 4)), jnp.ones((1, 2, 3))
    arrays = x, one, one[0, 0], x[:, :, :1], x[:, :, :1]
    with pytest.raises(ValueError, match="Only interpret mode is supported on CPU"):
        jax.jit(ssd_gpu)(*arrays)
    with pytest.raises(ValueError, match="ssd_gpu: chunk is 24, expected a power of two of at least 16"):
        ssd(*arrays, chunk=24)
    with pytest.raises(ValueError, match="ssd_gpu: x has h = 3 heads, not a multiple of B's g = 2"):
        ssd(*arrays[:3], x[:, :, :2], x[:, :, :2])
    with pytest.raises(
        ValueError, match="selective_scan_gpu: i_block is 24, expected a power of two of at least 16"
    ):
        scan(one, one, jnp.zeros((3, 2)), one[..., :2], one[..., :2], i_block=24)
