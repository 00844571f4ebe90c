"""Four first tokens and a window: the text has no end, and positions stay within the memory."""

import jax
import numpy as np
import pytest
from toys import toy_attention

from minillm import laws
from minillm.cache import StateSpec
from minillm.ops import apply_rope_ref, attention_ref, rope_frequencies
from minillm.span import Span

K = 4  # channels of the toy's heads


def inputs(rng, shape):
    return rng.normal(size=(*shape, 4 * K))


def by_hand(toy, x: np.ndarray, budget: int) -> np.ndarray:
    """The toy's output for tokens x [t, d] one after the other, keys turned anew by their place in the memory."""
    outputs = []
    for i in range(len(x)):
        kept = [*range(min(4, i + 1)), *range(max(4, i + 5 - budget), i + 1)]
        q, k, v = np.split((x[kept] @ np.asarray(toy.qkv)).reshape(1, len(kept), 4, K), (2, 3), axis=2)
        place = np.arange(len(kept), dtype=np.int32)[None]
        q, k = (apply_rope_ref(one, place, rope_frequencies(K, 100.0)) for one in (q, k))
        y = np.asarray(attention_ref(q[:, -1:], k, v))
        outputs.append(x[i] + np.tile(y.reshape(-1), 2))
    return np.array(outputs)


@pytest.mark.usefixtures("quick_programs")
@pytest.mark.parametrize("split", [[60], [1] * 60, [3, 40, 1, 16]])
def test_a_query_sees_four_first_tokens_and_the_newest_at_their_places_in_memory(split):
    with jax.enable_x64(True):
        toy = toy_attention(np.random.default_rng(0))
        x = inputs(np.random.default_rng(1), (60,))
        state = laws.poisoned(toy.init_state(StateSpec(1, 64, "sinks", "float64", budget=20)))
        found, start = [], 0
        for n in split:
            at = Span.chain(np.array([start], np.int32), np.array([n], np.int32), n)
            keep = np.arange(n, dtype=np.int32)[None]
            y, state = laws.advance(toy, x[None, start : start + n], state, at, keep, np.array([n], np.int32))
            found, start = [*found, *np.asarray(y)[0]], start + n
        np.testing.assert_allclose(np.array(found), by_hand(toy, x, 20), atol=1e-5)  # angles are float32


@pytest.mark.usefixtures("quick_programs")
def test_the_laws_hold_for_sinks():
    with jax.enable_x64(True):
        toy = toy_attention(np.random.default_rng(0))
        spec = StateSpec(3, 40, "sinks", "float64", budget=20)
        laws.check_schedules(toy, inputs, spec=spec, tolerance=1e-6, examples=4, steps=24, all_slots=False)
        laws.check_donation(toy, inputs, spec=spec)
