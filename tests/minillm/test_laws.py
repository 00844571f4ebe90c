from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from toys import ToyAttention, ToyRecurrence, toy_attention, toy_hybrid, toy_recurrence

from minillm import laws
from minillm.cache import StateSpec

SPECS = [pytest.param(replace(spec, dtype="float64"), id=spec.kind) for spec in laws.with_kinds()]


def activations(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(size=(*shape, 16))


pytestmark = pytest.mark.usefixtures("quick_programs")


@pytest.fixture(autouse=True)
def _float64():
    """In float64 a wrong row stands out from rounding by ten orders of magnitude."""
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("spec", SPECS)
def test_every_schedule_gives_what_reading_whole_sequences_gives(spec):
    toy, all_slots = toy_hybrid(np.random.default_rng(0)), spec.kind == "contiguous"
    laws.check_schedules(toy, activations, spec=spec, tolerance=1e-12, examples=6, all_slots=all_slots)


def test_later_tokens_change_nothing_before_them():
    laws.check_causality(toy_hybrid(np.random.default_rng(0)), activations)


@pytest.mark.parametrize("spec", SPECS)
def test_a_step_updates_memory_in_place(spec):
    laws.check_donation(toy_hybrid(np.random.default_rng(0)), activations, spec=spec)


@struct.dataclass
class ForgetsPadding(ToyRecurrence):
    def __call__(self, x, state, at):
        return super().__call__(x, state, replace(at, n=jnp.full_like(at.n, x.shape[1])))


@struct.dataclass
class IgnoresRollback(ToyRecurrence):
    def commit(self, pending, at, keep, n_keep):
        last = jnp.arange(keep.shape[1], dtype=jnp.int32) + jnp.zeros_like(keep)
        return super().commit(pending, at, last, jnp.where(n_keep > 0, at.n, 0))


@struct.dataclass
class KeepsOldSequence(ToyRecurrence):
    def __call__(self, x, state, at):
        return super().__call__(x, state, replace(at, start=jnp.maximum(at.start, 1)))


@struct.dataclass
class SeesTheFuture(ToyAttention):
    def __call__(self, x, state, at):
        return super().__call__(x, state, replace(at, pos=jnp.full_like(at.pos, 999)))


@struct.dataclass
class IgnoresTheTree(ToyAttention):
    def __call__(self, x, state, at):
        return super().__call__(x, state, replace(at, parent=None))


@struct.dataclass
class LeavesTreeRowsWhereTheyWere(ToyAttention):
    def commit(self, pending, at, keep, n_keep):
        return pending


@struct.dataclass
class MixesUpSlots(ToyAttention):
    def __call__(self, x, state, at):
        return super().__call__(x, state, replace(at, slot=jnp.arange(len(at.start), dtype=jnp.int32)))


@struct.dataclass
class TakesRowsForPositions(ToyAttention):
    def __call__(self, x, state, at):
        if state is None:
            return super().__call__(x, state, at)
        rows = at.start[:, None] + jnp.arange(x.shape[1], dtype=jnp.int32)
        return super().__call__(x, state, replace(at, pos=rows))


@struct.dataclass
class ReadsKeepBeyondItsEnd(ToyRecurrence):
    def commit(self, pending, at, keep, n_keep):
        return super().commit(pending, at, keep, jnp.where(n_keep > 0, keep.shape[1], 0))


@struct.dataclass
class ReturnsAnotherMemory(ToyAttention):
    def commit(self, pending, at, keep, n_keep):
        return jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), super().commit(pending, at, keep, n_keep))


WRONG = [ForgetsPadding, IgnoresRollback, KeepsOldSequence, SeesTheFuture, IgnoresTheTree]
WRONG += [LeavesTreeRowsWhereTheyWere, MixesUpSlots, TakesRowsForPositions, ReadsKeepBeyondItsEnd]
WRONG += [ReturnsAnotherMemory]


@pytest.mark.parametrize("wrong", WRONG)
def test_the_laws_catch_a_block_that_is_wrong_in_one_way(wrong):
    right = toy_attention if issubclass(wrong, ToyAttention) else toy_recurrence
    block = wrong(*jax.tree.leaves(right(np.random.default_rng(0))))
    spec = StateSpec(slots=2 if wrong is MixesUpSlots else 1, max_len=16, dtype="float64")
    with pytest.raises((AssertionError, UserWarning)):  # the warning: donated memory of another shape
        laws.check_schedules(block, activations, spec=spec, tolerance=1e-12, examples=30, shrink=False)


def test_the_laws_catch_memory_that_is_copied():
    @struct.dataclass
    class Copies(ToyRecurrence):
        def commit(self, pending, at, keep, n_keep):
            return super().commit(pending, at, keep, n_keep).astype(jnp.float32)

    block = Copies(*jax.tree.leaves(toy_recurrence(np.random.default_rng(0))))
    with pytest.raises(AssertionError, match="in place"):
        laws.check_donation(block, activations, spec=replace(laws.SPEC, dtype="float64"))


@struct.dataclass
class Broken(ToyAttention):
    def __call__(self, x, state, at):
        raise RuntimeError("used")


def test_the_laws_use_the_system_even_in_a_single_example():
    block = Broken(*jax.tree.leaves(toy_attention(np.random.default_rng(0))))
    with pytest.raises(RuntimeError, match="used"):
        laws.check_schedules(block, activations, examples=1, steps=1)


def test_the_laws_hold_for_memory_of_other_sizes():
    toy = toy_attention(np.random.default_rng(0))
    spec = StateSpec(slots=1, max_len=70, kind="paged", dtype="float64", page_size=3, n_pages=24)
    laws.check_schedules(toy, activations, spec=spec, tolerance=1e-12, examples=2, steps=40)


@pytest.mark.parametrize("sizes", [{"slots": 0}, {"max_len": -1}, {"kind": "paged"}, {"kind": "ring"}])
def test_a_spec_of_no_memory_is_refused(sizes):
    with pytest.raises(ValueError, match=r"StateSpec: .* expected"):
        StateSpec(**({"slots": 1, "max_len": 4} | sizes))
