"""Attention kernels for GPUs, interpreted: judged as anybody's kernels are, and what only they promise."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import QUICK
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm import ops
from minillm.ops.attention.cases import ATTENTION
from minillm.ops.attention.cases_paged import PAGED_ATTENTION
from minillm.ops.attention.pallas_gpu import flash_attention_gpu, visited_tiles
from minillm.ops.attention.pallas_gpu_paged import paged_attention_gpu
from minillm.ops.attention.ref import visible_ref

OPTIONS = ("causal", "window", "softcap", "scale", "return_lse", "q_block", "s_block")
flash = jax.jit(partial(flash_attention_gpu, interpret=True), static_argnames=OPTIONS, compiler_options=QUICK)
paged = jax.jit(
    partial(paged_attention_gpu, interpret=True), static_argnames=(*OPTIONS, "splits"), compiler_options=QUICK
)


def some(op, *names):
    """The op with these cases alone."""
    return replace(op, cases=tuple(case for case in op.cases if case.name in names))


def brief(op, dtype):
    """The op with its laws of equal bits (the others follow from the definition's), and nasty, in float32 alone."""
    wide = dtype == "float32"
    return replace(op, laws=tuple(law for law in op.laws if law.exact and wide), styles=op.styles if wide else {})


def judge(op, kernel, dtype="float32", **options):
    report = ops.validate(op, kernel, dtype=dtype, shrink=False, **options)
    report.assert_ok()
    assert not report.uncovered
    return report


@pytest.mark.parametrize(
    ("name", "dtype"), [("everything at once", "float32"), ("window on both sides, multi-query", "bfloat16")]
)
def test_flash_attention_passes_the_judge(name, dtype):
    judge(brief(some(ATTENTION, name), dtype), flash, dtype, seeds=1)


@pytest.mark.parametrize(
    ("names", "dtype"),
    [(("sinks", "window"), "float32"), (("pages of five rows, narrow values",), "bfloat16")],
    ids=["float32", "bfloat16"],
)
def test_attention_over_pages_passes_the_judge(names, dtype):
    judge(brief(some(PAGED_ATTENTION, *names), dtype), partial(paged, splits=3), dtype, seeds=1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("op", "kernel"), [(ATTENTION, flash), (PAGED_ATTENTION, paged)], ids=["flash", "paged"])
def test_kernels_pass_the_judge_in_every_case(op, kernel, dtype):
    report = judge(op, kernel, dtype)
    assert not report.unused


tiles = jax.jit(visited_tiles, static_argnums=(2, 3, 4, 5))
positions = st.lists(st.integers(-1, 40), min_size=40, max_size=40)


@settings(max_examples=25)
@given(q_pos=positions, k_pos=positions, in_order=st.booleans())
@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 7), (False, 20), (False, None)])
def test_every_key_that_is_seen_lies_in_a_tile_that_is_visited(q_pos, k_pos, in_order, causal, window):
    q_pos, k_pos = (np.array([sorted(pos) if in_order else pos], np.int32) for pos in (q_pos, k_pos))
    visited = np.asarray(tiles(q_pos, k_pos, 16, 16, causal, window))[0]
    seen = visible_ref(q_pos, k_pos, causal=causal, window=window)[0]
    assert visited.shape == (3, 2)
    for i, (first, end) in enumerate(visited):
        keys = np.flatnonzero(seen[16 * i : 16 * i + 16].any(axis=0)) // 16
        assert np.all((keys >= first) & (keys < end))


def test_tiles_that_a_causal_mask_or_a_window_hides_are_not_visited():
    pos = np.arange(128, dtype=np.int32)[None]
    assert tiles(pos, pos, 32, 32, True, None).tolist() == [[[0, 1], [0, 2], [0, 3], [0, 4]]]
    assert tiles(pos, pos, 32, 32, True, 33).tolist() == [[[0, 1], [0, 2], [1, 3], [2, 4]]]
    assert tiles(np.full((1, 128), -1, np.int32), pos, 32, 32, True, None).tolist() == [[[0, 0]] * 4]


def numbers(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("q_block", "s_block"), [(32, 16), (16, 128)])
def test_the_size_of_tiles_does_not_matter(q_block, s_block):
    q, k, v = numbers(2, 21, 6, 8), numbers(2, 50, 2, 8), numbers(2, 50, 2, 24)
    y = flash(q, k, v, q_block=q_block, s_block=s_block, window=20)
    assert np.allclose(y, ops.attention_ref(q, k, v, window=20), atol=1e-5)


@pytest.mark.parametrize("splits", [1, 5])
def test_the_number_of_parts_and_the_size_of_tiles_do_not_matter(splits):
    arrays = PAGED_ATTENTION.draw(PAGED_ATTENTION.cases[-1], np.random.default_rng(0))
    arrays: Any = {name: x.astype(np.float32) if x.dtype == float else x for name, x in arrays.items()}
    y = paged(**arrays, splits=splits, s_block=32)
    assert np.allclose(y, ops.paged_attention_ref(**arrays), atol=1e-5)


def test_keys_in_tiles_that_nobody_sees_are_not_even_read():
    """NaN would get into y: its weight is 0, and 0 * NaN is NaN."""
    q, k, v = numbers(1, 32, 1, 8), numbers(1, 32, 1, 8), numbers(1, 32, 1, 8)
    v[:, 16:] = np.nan
    y = flash(q, k, v, q_block=16, s_block=16)
    assert np.isfinite(y[:, :16]).all()
    assert np.isnan(y[:, 16:]).all()
    pages, length = np.arange(8, dtype=np.int32)[None], np.array([32], np.int32)
    pools = k.reshape(8, 4, 1, 8), np.flip(v, 1).reshape(8, 4, 1, 8)
    for window, finite in ((16, True), (18, False)):
        y = paged(q[:, :1], *pools, pages, length, window=window, s_block=16)
        assert np.isfinite(y).all() == finite


def test_a_page_that_does_not_exist_gives_nan_and_only_where_it_is_needed():
    q, k_pages, v_pages = numbers(2, 1, 2, 8), numbers(3, 4, 1, 8), numbers(3, 4, 1, 8)
    pages, lengths = np.array([[0, 3], [2, -1]], np.int32), np.array([6, 4], np.int32)
    y = paged(q, k_pages, v_pages, pages, lengths)
    assert np.isnan(y).all(axis=(1, 2, 3)).tolist() == [True, False]
    assert np.isfinite(y[1]).all()


def test_only_who_asks_for_it_is_interpreted():
    q = jnp.zeros((1, 1, 1, 8))
    with pytest.raises(ValueError, match="Only interpret mode is supported on CPU"):
        jax.jit(flash_attention_gpu)(q, q, q)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"q_block": 48}, "q_block is 48, expected a power of two of at least 16"),
        ({"s_block": 8}, "s_block is 8, expected a power of two of at least 16"),
        ({"window": 0}, "window is 0"),
    ],
)
def test_what_no_kernel_can_do_is_refused(options, message):
    q = np.zeros((1, 1, 2, 8), np.float32)
    with pytest.raises(ValueError, match=f"flash_attention_gpu: {message}"):
        flash(q, q, q, **options)
    one = np.ones(1, np.int32)
    with pytest.raises(ValueError, match=f"paged_attention_gpu: {message}"):
        paged(q, q, q, one[None] * 0, one, **options)
    with pytest.raises(ValueError, match="splits is 0, expected at least 1"):
        paged(q, q, q, one[None] * 0, one, splits=0)
