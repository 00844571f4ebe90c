"""A memory read in blocks answers as one that is read at once."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import QUICK
from toys import toy_attention

from minillm import laws
from minillm.blocks import LatentAttentionSpec, Params
from minillm.cache import StateSpec, Transient, new_cache, rows
from minillm.cache.contiguous import Contiguous
from minillm.config import Config
from minillm.rope import default
from minillm.span import Span

PLAIN = StateSpec(slots=3, max_len=17, dtype="float64")
PAGED = StateSpec(slots=3, max_len=17, dtype="float64", kind="paged", page_size=4, n_pages=13)


@pytest.fixture
def _small_blocks(monkeypatch):
    """Blocks of 3 to 5 rows: 17 rows end within a block, and the laws' spans within another."""
    monkeypatch.setattr(rows, "BLOCK", 40)
    monkeypatch.setattr(rows, "FEWEST", 3)
    monkeypatch.setattr(rows, "AT_ONCE", 3)


@pytest.mark.usefixtures("_small_blocks", "quick_programs")
@pytest.mark.parametrize(
    ("spec", "window"), [(PLAIN, None), (PAGED, None), (PLAIN, 11)], ids=["contiguous", "paged", "ring"]
)
def test_the_laws_hold_where_blocks_are_read_one_by_one(spec, window):
    with jax.enable_x64(True):
        toy = toy_attention(np.random.default_rng(0), window=window)
        laws.check_schedules(
            toy,
            lambda rng, shape: rng.normal(size=(*shape, 16)),
            spec=spec,
            tolerance=1e-12,
            examples=3,
            all_slots=False,
        )
        laws.check_donation(toy, lambda rng, shape: rng.normal(size=(*shape, 16)), spec=spec)


@pytest.mark.usefixtures("_small_blocks", "quick_programs")
def test_the_laws_hold_for_latents_read_one_by_one():
    """Some of the spans on the latents themselves, the longer ones on keys and values built for each block."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)

        def get(name, layer, *shapes, init):
            return jnp.asarray(rng.normal(size=(sum(s[0] for s in shapes), *shapes[0][1:])) / 3, "float64")

        spec = LatentAttentionSpec(h=2, k=2, a=2, j=3, l=6, rope=default(2, 1e2), scale=0.7)
        block = spec.build(Params(get, Config("toy", d=10, v=1, context=64, layers=(), tied=True), 0))
        laws.check_schedules(
            block,
            lambda rng, shape: rng.normal(size=(*shape, 10)),
            spec=PLAIN,
            tolerance=1e-12,
            examples=3,
            all_slots=False,
        )


@pytest.mark.usefixtures("_small_blocks")
def test_gradients_go_back_through_the_blocks(monkeypatch):
    rng, at = np.random.default_rng(0), Span.chain(np.zeros(2, np.int32), np.array([11, 7], np.int32), 11)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 11, heads, 4)), "float32") for heads in (4, 2, 2))

    def gradients():
        def loss(q, k, v):
            y, _ = Transient(k, v).attend(q, at)
            return jnp.sum(jnp.where(at.valid[:, :, None, None], y, 0) ** 2)

        return jax.jit(jax.grad(loss, (0, 1, 2)), compiler_options=QUICK)(q, k, v)

    found = gradients()
    monkeypatch.setattr(rows, "AT_ONCE", 11)
    expected = gradients()
    assert any(np.any(one != other) for one, other in zip(found, expected, strict=True))  # another order of sums
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize(("start", "n", "blocks"), [([0, 0], [1, 0], 1), ([0, 4], [1, 1], 1), ([9, 2], [1, 6], 2)])
def test_blocks_that_no_sequence_has_reached_are_not_read(start, n, blocks):
    """Each block that is read adds e^0 to the sum behind the log-sum-exp."""
    memory, at = new_cache(StateSpec(2, 17), 2, 4), Span.chain(np.array(start), np.array(n), 1)
    assert isinstance(memory, Contiguous)

    def attend(part):
        assert part.k.shape == (2, 5, 2, 4)
        return jnp.zeros((2, 1, 4, 4)), jnp.zeros((2, 1, 4))

    run = jax.jit(lambda memory: rows.by_blocks(attend, memory, at, row_size=8, h=4), compiler_options=QUICK)
    _, lse = run(memory)
    np.testing.assert_allclose(lse, np.log(blocks), atol=1e-6)


def test_a_step_of_some_slots_copies_blocks_and_not_their_whole_memory():
    """XLA moves what does not change out of a loop: a slot's memory must not be taken before its block is."""
    ones = np.ones(2, np.int32)
    at = Span.chain(ones, ones, 1, slot=np.array([2, 0]))
    memory: Any = jax.eval_shape(lambda: new_cache(StateSpec(slots=4, max_len=1 << 16), 2, 64))
    q = jax.ShapeDtypeStruct((2, 1, 4, 64), np.float32)
    step = jax.jit(lambda memory, q, at: memory.attend(q, at)).lower(memory, q, at).compile()
    analysis = step.memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes < memory.keys.size  # a quarter of the keys' bytes
