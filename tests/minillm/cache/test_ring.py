"""The ring remembers what a plain memory of the same window does, in less of it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from agreement import QUICK
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import toy_attention

import minillm
from minillm import generate, laws
from minillm.cache import StateSpec, new_cache
from minillm.cache.contiguous import Contiguous
from minillm.cache.ring import Ring
from minillm.span import Span

B, G, H, K = 2, 2, 4, 3


@partial(jax.jit, static_argnames="window", compiler_options=QUICK)
def advance(memory, q, k, v, at, keep, n_keep, window):
    """The memory after a span, and y."""
    memory = memory.append(k, v, at)
    y, memory = memory.attend(q, at, window=window)
    return memory.commit(at, keep, n_keep), y


def drawn(rng: np.random.Generator, t: int) -> list[np.ndarray]:
    """q, k and v of a span."""
    return [rng.normal(size=(B, t, heads, K)).astype(np.float32) for heads in (H, G, G)]


def poisoned(memory):
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), memory)


def whole(start: np.ndarray, n: np.ndarray, t: int) -> tuple:
    """A chain of which everything stays."""
    return Span.chain(start, n, t), np.tile(np.arange(t, dtype=np.int32), (B, 1)), n


def memories(window: int, dtype: str = "float32", max_len: int = 40) -> tuple[Ring, Contiguous]:
    """A ring and a plain memory, both of NaN."""
    spec = StateSpec(slots=B, max_len=max_len, dtype=dtype)
    return poisoned(new_cache(spec, G, K, window)), poisoned(new_cache(spec, G, K))


def test_a_ring_has_as_many_rows_as_the_window_and_no_more_than_there_are_tokens():
    spec = StateSpec(slots=1, max_len=40)
    rows = {window: jax.tree.leaves(new_cache(spec, G, K, window))[0].shape[2] for window in (1, 8, 39, 100)}
    assert rows == {1: 1, 8: 8, 39: 39, 100: 40}


@pytest.mark.parametrize(("window", "dtype"), [(1, "float32"), (8, "float32"), (100, "float32"), (8, "bfloat16")])
@settings(max_examples=3)
@given(data=st.data())
def test_a_ring_answers_as_a_plain_memory_does(window, dtype, data):
    """In bfloat16 too: what a span sees of itself must have been rounded as what is remembered."""
    rng, t = np.random.default_rng(data.draw(st.integers(0, 2**16))), 13
    ring, plain = memories(window, dtype)
    start = np.zeros(B, np.int32)
    for _ in range(12):
        n = np.array([min(data.draw(st.sampled_from([t, *range(t)])), 40 - at) for at in start], np.int32)
        qkv, place = drawn(rng, t), whole(start, n, t)
        ring, found = advance(ring, *qkv, *place, window)
        plain, expected = advance(plain, *qkv, *place, window)
        real = np.arange(t) < n[:, None]
        np.testing.assert_allclose(np.asarray(found)[real], np.asarray(expected)[real], rtol=0, atol=2e-6)
        start += n


@pytest.mark.usefixtures("quick_programs")
@pytest.mark.parametrize(
    ("window", "all_slots"), [(3, False), (15, True), pytest.param(17, False, marks=pytest.mark.slow)]
)
def test_the_laws_hold_for_windows_shorter_and_longer_than_spans_and_memory(window, all_slots):
    """Around the 16 rows and the 5 tokens of the laws' spans."""
    with jax.enable_x64(True):
        spec = StateSpec(slots=3, max_len=16, dtype="float64")
        toy = toy_attention(np.random.default_rng(0), window=window)

        def inputs(rng, shape):
            return rng.normal(size=(*shape, 16))

        laws.check_schedules(toy, inputs, spec=spec, tolerance=1e-12, examples=4, all_slots=all_slots)
        laws.check_donation(toy, inputs, spec=spec)


def test_a_rejected_draft_leaves_the_memory_as_it_was():
    rng, (ring, _) = np.random.default_rng(0), memories(window=5)
    start, t = np.zeros(B, np.int32), 13
    ring, _ = advance(ring, *drawn(rng, t), *whole(start, start + t, t), 5)
    place = Span.chain(start + t, start + t, t, rewind=True), np.zeros((B, t), np.int32), np.zeros(B, np.int32)
    after, _ = advance(ring, *drawn(rng, t), *place, 5)
    assert np.array_equal(after.keys, ring.keys)
    assert np.array_equal(after.values, ring.values)


def test_of_a_draft_tree_the_kept_path_is_written_and_nothing_else():
    rng, (ring, _) = np.random.default_rng(0), memories(window=6)
    start, t = np.zeros(B, np.int32), 13
    ring, _ = advance(ring, *drawn(rng, t), *whole(start, start + t, t), 6)
    parent = np.tile(np.array([-1, 0, 0, 2, 3], np.int32), (B, 1))
    keep, n_keep = np.array([[0, 2, 3], [1, 1, 1]], np.int32), np.array([3, 0], np.int32)
    q, k, v = drawn(rng, 5)
    after, _ = advance(ring, q, k, v, Span.tree(start + t, start + 5, parent), keep, n_keep, 6)
    expected = np.array(ring.keys)
    for place, index in enumerate([0, 2, 3]):
        expected[0, :, (13 + place) % 6] = k[0, index]
    assert np.array_equal(after.keys, expected)


@pytest.mark.parametrize("window", [3, 6, 8, 100])  # below, between, at and above the capacities 4 and 8
def test_a_memory_that_grows_forgets_nothing(window):
    rng, start, n = np.random.default_rng(0), np.zeros(B, np.int32), np.ones(B, np.int32)
    ring, plain = memories(window, max_len=4)[0], memories(window, max_len=8)[1]
    for capacity in (4, 8):
        if capacity > 4:
            larger = new_cache(StateSpec(B, capacity), G, K, window)
            ring = generate.enlarged((ring,), (poisoned(larger),))[0]
        while start[0] < capacity:
            qkv, place = drawn(rng, 1), whole(start.copy(), n, 1)
            ring, y = advance(ring, *qkv, *place, window)
            plain, expected = advance(plain, *qkv, *place, window)
            np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6)
            start += 1


@pytest.mark.usefixtures("quick_programs")
def test_generation_goes_on_unchanged_while_its_memory_grows(tmp_path, monkeypatch):
    tiny.unpacked("mistral_0", tmp_path)  # a window of 7 tokens
    lm, prompt = minillm.load(tmp_path), [5, 9, 2]
    expected = lm.generate(prompt, max_tokens=40, temperature=0.0).tokens
    monkeypatch.setattr(generate, "LEAST_MEMORY", 4)
    monkeypatch.setattr(generate, "AHEAD", 1)
    assert lm.generate(prompt, max_tokens=40, temperature=0.0).tokens == expected
