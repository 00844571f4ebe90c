"""What is looked at least is forgotten, by each KV head for itself."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from agreement import QUICK
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm import laws
from minillm.cache import StateSpec, new_cache
from minillm.span import Span

B, G, H, K, BUDGET = 2, 2, 4, 4, 20


@partial(jax.jit, compiler_options=QUICK)
def advance(memory, q, k, v, at, keep, n_keep):
    y, memory = memory.append(k, v, at).attend(q, at)
    return y, memory.commit(at, keep, n_keep)


class ByHand:
    """One KV head of one sequence, in plain loops: what it holds is a list of (position, key, value, drawn)."""

    def __init__(self):
        self.held: list[list] = []

    def read(self, qs: np.ndarray, ks: np.ndarray, vs: np.ndarray, start: int, n_keep: int) -> np.ndarray:
        """Outputs [t, r, k] of a chain qs [t, r, k], of which the first n_keep tokens stay."""
        new = [[start + i, k, v, 0.0] for i, (k, v) in enumerate(zip(ks, vs, strict=True))]
        outputs = np.zeros_like(qs)
        for i, heads in enumerate(qs):
            seen = [*self.held, *new[: i + 1]]
            for r, q in enumerate(heads):
                weights = np.exp([q @ k / np.sqrt(K) for _, k, _, _ in seen])
                weights /= weights.sum()
                outputs[i, r] = sum(w * v for w, (_, _, v, _) in zip(weights, seen, strict=True))
                if i < n_keep:
                    for w, one in zip(weights, seen, strict=True):
                        one[3] += w
        end = start + n_keep
        self.held += new[:n_keep]
        newest = [one for one in self.held if one[0] >= end - BUDGET // 2]
        older = sorted((one for one in self.held if one[0] < end - BUDGET // 2), key=lambda one: -one[3])
        self.held = newest + older[: BUDGET - len(newest)]
        return outputs


@settings(max_examples=5)
@given(data=st.data())
def test_each_head_keeps_the_newest_and_what_drew_most_attention(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    memory = laws.poisoned(new_cache(StateSpec(B, 64, "h2o", budget=BUDGET), G, K))
    hands, start = [[ByHand() for _ in range(G)] for _ in range(B)], np.zeros(B, np.int32)
    t = 6
    for _ in range(8):
        q, k, v = (rng.normal(size=(B, t, heads, K)).astype(np.float32) for heads in (H, G, G))
        n = np.array([data.draw(st.integers(0, t)) for _ in range(B)], np.int32)
        n_keep = np.array([data.draw(st.integers(0, most)) for most in n], np.int32)
        keep = np.tile(np.arange(t, dtype=np.int32), (B, 1))
        y, memory = advance(memory, q, k, v, Span.chain(start, n, t, rewind=True), keep, n_keep)
        for b in range(B):
            heads = q[b, : n[b]].reshape(-1, G, H // G, K).astype(np.float64)
            for g in range(G):
                one = hands[b][g]
                expected = one.read(heads[:, g], k[b, : n[b], g], v[b, : n[b], g], start[b], n_keep[b])
                found = np.asarray(y)[b, : n[b]].reshape(-1, G, H // G, K)[:, g]
                np.testing.assert_allclose(found, expected, atol=1e-5)
                if n[b]:
                    assert {p for p in np.asarray(memory.pos)[b, g].tolist() if p >= 0} == {p for p, *_ in one.held}
        start += n_keep


def test_a_text_that_fits_is_remembered_whole():
    rng = np.random.default_rng(0)
    spec = StateSpec(B, 24, "h2o", budget=24)
    lossy, plain = (laws.poisoned(new_cache(one, G, K)) for one in (spec, replace(spec, kind="contiguous")))
    parent = np.tile(np.array([-1, 0, 0, 2, 3, 1], np.int32), (B, 1))
    for step in range(4):
        start, n, slot = np.array([3 * step] * B, np.int32), np.array([6, 4], np.int32), np.array([1, 0], np.int32)
        at = Span.tree(start, n, parent, slot)
        keep, n_keep = np.tile(np.array([0, 2, 3], np.int32), (B, 1)), np.array([3, 3], np.int32)
        q, k, v = (rng.normal(size=(B, 6, heads, K)).astype(np.float32) for heads in (H, G, G))
        y, lossy = advance(lossy, q, k, v, at, keep, n_keep)
        expected, plain = advance(plain, q, k, v, at, keep, n_keep)
        real = np.arange(6) < n[:, None]
        np.testing.assert_allclose(np.asarray(y)[real], np.asarray(expected)[real], atol=1e-5)


@pytest.mark.parametrize("budget", [0, 19])
def test_a_memory_too_small_for_a_draft_is_refused(budget):
    with pytest.raises(ValueError, match=f"budget is {budget}, expected 20 or more"):
        StateSpec(1, 64, "h2o", budget=budget)
