"""The protocol's laws, as tests that anyone can run on a block, a cache or a model.

One sentence holds all of them: whatever the schedule, each output is what the same system gives when it reads
that token's whole sequence at once. Prefill, single steps and any split, padding, batching, drafts rolled back
to any point, draft trees, slots in any order, pages anywhere, snapshots, and slots used again are schedules.

    laws.check_schedules(system, inputs)     draws schedules with hypothesis and shrinks one that fails
    laws.check_causality(system, inputs)     later tokens change nothing before them
    laws.check_donation(system, inputs)      a step updates its memory in place

`system` has init_state, __call__ and commit (see `minillm.blocks.Block`); `inputs(rng, shape)` draws what it
reads: token ids i32 [b, t], or activations [b, t, d]. Memory starts as NaN and padding is poison, so nothing
that was not written can be used unseen. All checks raise AssertionError.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from .blocks import Block
from .cache import StateSpec
from .model import Model
from .span import Span

System = Block | Model
Inputs = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]

SLOTS, LONGEST, PAGE_SIZE = 3, 16, 4
N_PAGES = SLOTS * LONGEST // PAGE_SIZE + 2
SPEC = StateSpec(SLOTS, LONGEST, page_size=PAGE_SIZE, n_pages=N_PAGES)
WILD_PAGE = 1 << 20  # stands in table entries that no row reaches

Form = Literal["step", "prefill", "draft", "tree"]
WIDTH: dict[Form, int] = {"step": 1, "prefill": 5, "draft": 5, "tree": 5}


@partial(jax.jit, donate_argnames="state")
def advance(system: System, x: jax.Array, state: Any, at: Span, keep: jax.Array, n_keep: jax.Array):
    """Propose and commit in one program -> outputs [b, t, …], new state."""
    y, pending = system(x, state, at)
    return y, system.commit(pending, at, keep, n_keep)


@jax.jit
def read_whole(system: System, x: jax.Array, n: jax.Array) -> jax.Array:
    """Outputs [b, t, …] of whole sequences, n [b] of their tokens real."""
    return system(x, None, Span.chain(jnp.zeros_like(n), n, x.shape[1]))[0]


@dataclass
class Draft:
    """One span as it was drawn: `paths[i][j]` lists the span indices that lead to token j of row i, itself last."""

    form: Form
    rows: list[int]
    n: list[int]
    parent: np.ndarray
    paths: list[list[list[int]]]


def check_schedules(
    system: System,
    inputs: Inputs,
    *,
    spec: StateSpec = SPEC,
    tolerance: float = 1e-5,
    examples: int = 10,
    steps: int = 12,
    shrink: bool = True,
) -> None:
    """Run `examples` random schedules of `steps` spans; tolerance is max |error| / max |output|.

    A schedule that fails is shrunk to a short one, unless it only matters that there is one.
    """

    class Machine(Schedules):
        pass

    Machine.system, Machine.inputs, Machine.spec, Machine.tolerance = system, staticmethod(inputs), spec, tolerance
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            derandomize=True,
            print_blob=False,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
            phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
        ),
    )


class Schedules(RuleBasedStateMachine):
    """The state machine: memory under test beside the plain list of what each slot has read."""

    system: System
    inputs: Inputs
    spec: StateSpec
    tolerance: float

    @initialize(seed=st.integers(0, 2**16))
    def start(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.state = poisoned(self.system.init_state(self.spec))
        self.read: list[list[np.ndarray]] = [[] for _ in range(SLOTS)]
        self.free = list(self.rng.permutation(N_PAGES))
        self.owned: list[list[int]] = [[] for _ in range(SLOTS)]
        self.saved: Any = None

    @rule(form=st.sampled_from(sorted(WIDTH)), whole=st.booleans(), data=st.data())
    def span(self, form: Form, whole: bool, data: st.DataObject) -> None:
        """Any span: all slots in order, or some slots in any order."""
        rows = list(range(SLOTS)) if whole else data.draw(st.permutations(range(SLOTS)))[: SLOTS - 1]
        draft = self.draw_draft(form, rows, data)
        keep, n_keep = self.draw_kept(draft, data)
        x, at = self.poisoned_inputs(draft), self.place(draft, whole)
        y, self.state = advance(self.system, x, self.state, at, keep, n_keep)
        self.compare(draft, x, np.asarray(y))
        for i, slot in enumerate(rows):
            self.read[slot] += [x[i, j] for j in keep[i, : n_keep[i]]]

    @rule(slot=st.integers(0, SLOTS - 1))
    def reuse(self, slot: int) -> None:
        """A new sequence starts in a used slot: nobody clears the memory, its first span says start = 0."""
        self.read[slot] = []
        self.free = [*self.owned[slot], *self.free]
        self.owned[slot] = []

    @rule()
    def snapshot(self) -> None:
        """Remember everything."""
        self.saved = jax.tree.map(np.array, (self.state, self.read, self.free, self.owned))

    @rule()
    def restore(self) -> None:
        """Go back to what was remembered."""
        if self.saved is not None:
            state, read, free, owned = jax.tree.map(np.array, self.saved)
            self.state, self.read = state, [list(one) for one in read]
            self.free, self.owned = [int(p) for p in free], [[int(p) for p in one] for one in owned]

    def draw_draft(self, form: Form, rows: list[int], data: st.DataObject) -> Draft:
        """How many tokens each row gets, and who follows whom."""
        t = WIDTH[form]
        n = [data.draw(st.integers(0, min(t, LONGEST - len(self.read[slot])))) for slot in rows]
        parent = np.tile(np.arange(t) - 1, (len(rows), 1))
        if form == "tree":
            parent = np.array([[data.draw(st.integers(-1, j - 1)) for j in range(t)] for _ in rows])
        paths = [[path_to(j, parent[i]) for j in range(n[i])] for i in range(len(rows))]
        return Draft(form, rows, n, parent.astype(np.int32), paths)

    def draw_kept(self, draft: Draft, data: st.DataObject) -> tuple[np.ndarray, np.ndarray]:
        """Which tokens stay: all, any prefix, or any path, by the form."""
        keep = np.zeros(draft.parent.shape, np.int32)
        n_keep = np.zeros(len(draft.rows), np.int32)
        for i, paths in enumerate(draft.paths):
            last = len(paths) - 1
            if draft.form in ("draft", "tree"):
                last = data.draw(st.integers(-1, last))
            path = paths[last] if last >= 0 else []
            keep[i, : len(path)], n_keep[i] = path, len(path)
        return keep, n_keep

    def poisoned_inputs(self, draft: Draft) -> np.ndarray:
        """Inputs for the span; what stands in padding must not matter."""
        x = self.inputs(self.rng, draft.parent.shape)
        for i, n in enumerate(draft.n):
            x[i, n:] = poison(x.dtype)
        return x

    def place(self, draft: Draft, whole: bool) -> Span:
        """The Span of a draft, with pages for the rows it will write."""
        start = np.array([len(self.read[slot]) for slot in draft.rows], np.int32)
        n = np.array(draft.n, np.int32)
        slot = None if whole else np.array(draft.rows, np.int32)
        pages = self.tables(draft, start + n) if self.spec.kind == "paged" else None
        if draft.form == "tree":
            return Span.tree(start, n, draft.parent, slot, pages)
        return Span.chain(start, n, draft.parent.shape[1], slot, pages, rewind=draft.form == "draft")

    def tables(self, draft: Draft, lengths: np.ndarray) -> np.ndarray:
        """Page tables that reach as far as they must; pages come from anywhere."""
        tables = np.full((len(draft.rows), LONGEST // PAGE_SIZE), WILD_PAGE, np.int32)
        for i, slot in enumerate(draft.rows):
            while len(self.owned[slot]) * PAGE_SIZE < lengths[i]:
                self.owned[slot].append(self.free.pop())
            tables[i, : len(self.owned[slot])] = self.owned[slot]
        return tables

    def compare(self, draft: Draft, x: np.ndarray, y: np.ndarray) -> None:
        """Every real output against the same token at the end of its whole sequence."""
        cells = [(i, j) for i, n in enumerate(draft.n) for j in range(n)]
        if not cells:
            return
        whole = np.full((SLOTS * max(WIDTH.values()), LONGEST, *x.shape[2:]), poison(x.dtype), x.dtype)
        n = np.zeros(len(whole), np.int32)
        for row, (i, j) in enumerate(cells):
            sequence = [*self.read[draft.rows[i]], *(x[i, step] for step in draft.paths[i][j])]
            whole[row, : len(sequence)], n[row] = sequence, len(sequence)
        expected = np.asarray(read_whole(self.system, whole, n))[np.arange(len(cells)), n[: len(cells)] - 1]
        close(np.array([y[cell] for cell in cells]), expected, self.tolerance, f"{draft.form} {draft}")


def check_causality(system: System, inputs: Inputs, *, t: int = 16, seed: int = 0) -> None:
    """Change every token from each of several places on: nothing before it changes, bit for bit."""
    rng = np.random.default_rng(seed)
    x, other = inputs(rng, (1, t)), inputs(rng, (1, t))
    n = np.full(1, t, np.int32)
    y = np.asarray(read_whole(system, x, n))
    for place in (1, t // 2, t - 1):
        changed = np.concatenate([x[:, :place], other[:, place:]], axis=1)
        y_changed = np.asarray(read_whole(system, changed, n))
        assert np.array_equal(y_changed[:, :place], y[:, :place]), (
            f"token {place} or later changed an output before it"
        )
        assert not np.array_equal(y_changed[:, place:], y[:, place:]), (
            f"no output depends on the tokens from {place}"
        )


def check_donation(system: System, inputs: Inputs, *, spec: StateSpec = SPEC) -> None:
    """The compiled step gives all of its memory's buffers back as its result: nothing is copied to be updated."""
    state = jax.tree.map(jnp.asarray, system.init_state(spec))
    x = inputs(np.random.default_rng(0), (SLOTS, 1))
    ones = np.ones(SLOTS, np.int32)
    pages = np.arange(SLOTS * 2, dtype=np.int32).reshape(SLOTS, 2) if spec.kind == "paged" else None
    at, keep = Span.chain(np.zeros(SLOTS, np.int32), ones, 1, pages=pages), np.zeros((SLOTS, 1), np.int32)
    compiled = advance.lower(system, x, state, at, keep, ones).compile()
    outputs = re.findall(r"\{(\d+)\}: \(\d+, \{\}, m\w+-alias\)", compiled.as_text() or "")
    leaves = len(jax.tree.leaves(state))
    copied = set(range(1, 1 + leaves)) - {int(output) for output in outputs}  # output 0 is y
    assert not copied, f"{len(copied)} of {leaves} arrays of memory are not updated in place"


def with_kinds(spec: StateSpec = SPEC) -> Iterable[StateSpec]:
    """The spec with each kind of cache."""
    return (replace(spec, kind="contiguous"), replace(spec, kind="paged"))


def path_to(j: int, parent: np.ndarray) -> list[int]:
    """The span indices from the root to token j."""
    return [] if j < 0 else [*path_to(int(parent[j]), parent), j]


def poison(dtype: np.dtype) -> float | int:
    """A value that must never be used: NaN, or a token id far outside every vocabulary (whose row is NaN)."""
    return 1 << 30 if dtype.kind in "iu" else np.nan


def poisoned(state: Any) -> Any:
    """Memory in which nothing was written: NaN wherever a NaN fits."""
    return jax.tree.map(
        lambda leaf: np.full_like(leaf, poison(leaf.dtype)) if leaf.dtype.kind == "f" else leaf, state
    )


def close(found: np.ndarray, expected: np.ndarray, tolerance: float, what: str) -> None:
    """Largest error over largest output, with NaN never close."""
    error = np.max(np.abs(found - expected)) / np.max(np.abs(expected))
    assert error <= tolerance, f"outputs differ by {error:.2e} of the largest, more than {tolerance:.0e}, in {what}"
