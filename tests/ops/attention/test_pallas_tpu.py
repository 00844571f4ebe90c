"""Attention kernels for TPUs, interpreted: judged as anybody's kernels are, and what only they promise."""

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
from minillm.ops.attention.pallas_tpu import flash_attention_tpu, tiles_there
from minillm.ops.attention.pallas_tpu_paged import paged_attention_tpu, pages_there, rows_seen
from minillm.ops.attention.scores import visible
from minillm.ops.attention.tiles import visible_tiles

flash: Any = partial(flash_attention_tpu, interpret=True, t_block=16, s_block=32)
paged: Any = partial(paged_attention_tpu, interpret=True, together=2)


def some(op, *names):
    """The op with these cases alone."""
    return replace(op, cases=tuple(case for case in op.cases if case.name in names))


def judge(op, kernel, dtype="float32", **options):
    report = ops.validate(op, ops.judge.compiled(kernel), dtype=dtype, shrink=False, **options)
    report.assert_ok()
    assert not report.uncovered
    return report


@pytest.mark.parametrize(
    ("name", "dtype"), [("everything at once", "float32"), ("grouped queries, narrow values", "bfloat16")]
)
def test_flash_attention_passes_the_judge(name, dtype):
    judge(replace(some(ATTENTION, name), laws=()), flash, dtype, seeds=1)


@pytest.mark.parametrize(("name", "dtype"), [("sinks", "float32"), ("soft cap and scale", "bfloat16")])
def test_attention_over_pages_passes_the_judge(name, dtype):
    judge(replace(some(PAGED_ATTENTION, name), laws=()), paged, dtype, seeds=1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("op", "kernel"), [(ATTENTION, flash), (PAGED_ATTENTION, paged)], ids=["flash", "paged"])
def test_kernels_pass_the_judge_in_every_case(op, kernel, dtype):
    report = judge(op, kernel, dtype)
    assert not report.unused


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), causal=st.booleans(), window=st.none() | st.integers(1, 30))
def test_every_key_that_is_seen_lies_in_a_tile_that_is_visited(seed, causal, window):
    rng = np.random.default_rng(seed)
    for order in (jnp.asarray, jnp.sort):
        q_pos, k_pos = (order(rng.integers(-1, 60, (1, n), dtype=np.int32)) for n in (27, 70))
        tiles = visible_tiles(q_pos, k_pos, 8, 16, causal=causal, window=window)
        visited = np.asarray(tiles_there(tiles))[0] == np.arange(tiles.shape[2])
        seen = np.asarray(visible(q_pos, k_pos, causal=causal, window=window))[0]
        for i, j in np.argwhere(seen):
            assert visited[i // 8, j // 16]


def test_tiles_that_a_causal_mask_or_a_window_hides_are_not_visited():
    pos = jnp.arange(128)[None]

    def visited(q_pos, **rules):
        return np.asarray(visible_tiles(q_pos, pos, 32, 32, **rules))[0].astype(int).tolist()

    assert visited(pos, causal=True, window=None) == np.tri(4).tolist()
    assert visited(pos, causal=True, window=33) == (np.tri(4) - np.tri(4, k=-2)).tolist()
    assert visited(pos[:, 96:], causal=True, window=1) == [[0, 0, 0, 1]]
    assert visited(jnp.full((1, 32), -1), causal=False, window=None) == [[0, 0, 0, 0]]


def test_what_is_not_visited_is_not_fetched_either():
    """A block is copied when its index changes; indices are those of tiles that are visited, each of them once."""
    tiles = jnp.array([[0, 0, 1, 1, 0], [1, 1, 0, 1, 0], [0, 0, 0, 0, 0]], bool)[None]
    assert tiles_there(tiles).tolist() == [[[2, 2, 2, 3, 3], [0, 1, 1, 3, 3], [0, 0, 0, 0, 0]]]
    pages, lengths = jnp.array([[7, 5, 6, 9], [3, 99, -1, 99], [99, -9, 0, 1]]), jnp.array([9, 2, 0])
    there = partial(pages_there, pages, p=10, o=4)
    assert there(rows_seen(lengths, 1, None), together=2).tolist() == [[7, 5, 6, 6], [3, 3, 3, 3], [9, 9, 9, 9]]
    assert there(rows_seen(lengths, 1, 3), together=3)[0].tolist() == [5, 5, 6, 6, 6, 6]


def numbers(*shape) -> Any:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def program(kernel, **options) -> Any:
    return jax.jit(partial(kernel, **options), compiler_options=QUICK)


@pytest.mark.parametrize(("t_block", "s_block"), [(8, 24), (128, 512)])
def test_the_size_of_tiles_does_not_matter(t_block, s_block):
    q, k, v = numbers(2, 21, 6, 8), numbers(2, 50, 2, 8), numbers(2, 50, 2, 24)
    y = program(flash, t_block=t_block, s_block=s_block, window=20)(q, k, v)
    assert np.allclose(y, ops.attention_ref(q, k, v, window=20), atol=1e-5)


@pytest.mark.parametrize("together", [1, 99])
def test_how_many_pages_come_together_does_not_matter(together):
    case = next(case for case in PAGED_ATTENTION.cases if case.name == "window")
    arrays = PAGED_ATTENTION.draw(case, np.random.default_rng(0))
    arrays: Any = {name: x.astype(np.float32) if x.dtype == float else x for name, x in arrays.items()}
    y = program(paged, together=together)(**arrays)
    assert np.allclose(y, ops.paged_attention_ref(**arrays), atol=1e-5)


def test_a_page_that_does_not_exist_gives_nan_and_only_where_it_is_needed():
    q, k_pages, v_pages = numbers(2, 1, 2, 8), numbers(3, 4, 1, 8), numbers(3, 4, 1, 8)
    pages, lengths = np.array([[0, 3], [2, -1]], np.int32), np.array([6, 4], np.int32)
    y = program(paged)(q, k_pages, v_pages, pages, lengths)
    assert np.isnan(y).all(axis=(1, 2, 3)).tolist() == [True, False]
    assert np.isfinite(y[1]).all()


def test_only_who_asks_for_it_is_interpreted():
    q = jnp.zeros((1, 1, 1, 8))
    with pytest.raises(ValueError, match="Only interpret mode is supported on CPU"):
        jax.jit(flash_attention_tpu)(q, q, q)
    one = jnp.ones((1, 1), jnp.int32)
    with pytest.raises(ValueError, match="Only interpret mode is supported on CPU"):
        jax.jit(paged_attention_tpu)(q, q, q, one * 0, one[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"softcap": -1.0}, "softcap is -1.0"), ({"window": 0}, "window is 0, expected at least 1")],
)
def test_what_no_kernel_can_do_is_refused(options, message):
    q, one = np.zeros((1, 1, 2, 8), np.float32), np.ones(1, np.int32)
    with pytest.raises(ValueError, match=f"flash_attention_tpu: {message}"):
        flash(q, q, q, **options)
    with pytest.raises(
        ValueError, match="flash_attention_tpu: t_block is 16 and s_block is 0, expected at least 1"
    ):
        flash(q, q, q, s_block=0)
    with pytest.raises(ValueError, match=f"paged_attention_tpu: {message}"):
        paged(q, q, q, one[None] * 0, one, **options)
    with pytest.raises(ValueError, match="paged_attention_tpu: together is 0, expected at least 1"):
        paged(q, q, q, one[None] * 0, one, together=0)
    with pytest.raises(ValueError, match=r"paged_attention_tpu: pages\[0, 0\] is 1 and holds tokens"):
        paged(q, q, q, one[None], one)
