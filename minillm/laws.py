"""The protocol's laws, as tests that anyone can run on a block, a cache or a model.

One sentence holds all of them: whatever the schedule, each output is what the same system gives when it reads
that token's whole sequence at once (through the same kind of memory, if that one rounds or forgets). Prefill,
single steps and any split, padding, batching, drafts rolled back to any point, draft trees, slots in any order,
pages anywhere, snapshots, and slots used again are schedules.

    laws.check_schedules(system, inputs)     draws schedules with hypothesis and shrinks one that fails
    laws.check_causality(system, inputs)     later tokens change nothing before them
    laws.check_donation(system, inputs)      a step updates its memory in place

`system` has init_state, __call__ and commit (see `minillm.blocks.Block`); `inputs(rng, shape)` draws what it
reads: token ids i32 [b, t], or activations [b, t, d]. Memory starts as NaN and padding is poison, so nothing
that was not written can be used unseen. All checks raise AssertionError, or whatever the system itself raises.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from .blocks import Block
from .cache import StateSpec
from .model import Model
from .span import Span

System = Block | Model
Inputs = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]

SPEC = StateSpec(slots=3, max_len=16, page_size=4, n_pages=14)
WILD = 1 << 20  # stands where nobody may look: in page table entries no row reaches, in `keep` beyond n_keep

Form = Literal["prefill", "draft", "step", "tree"]
WIDTH: dict[Form, int] = {"prefill": 5, "draft": 5, "step": 1, "tree": 5}


@partial(jax.jit, donate_argnames="state")
def advance(system: System, x: jax.Array, state: Any, at: Span, keep: jax.Array, n_keep: jax.Array):
    """Propose and commit in one program -> outputs [b, t, …], new state."""
    y, pending = system(x, state, at)
    return y, system.commit(pending, at, keep, n_keep)


@jax.jit
def read_whole(system: System, x: jax.Array, n: jax.Array, state: Any = None) -> jax.Array:
    """Outputs [b, t, …] of whole sequences, n [b] of their tokens real; state is an empty memory, or none."""
    return system(x, state, Span.chain(jnp.zeros_like(n), n, x.shape[1]))[0]


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
    all_slots: bool | None = None,
) -> None:
    """Run `examples` random schedules of `steps` spans; tolerance is max |error| / max |output|.

    A schedule that fails is shrunk to a short one, unless it only matters that there is one. It is an error if
    the schedules drawn left one form of span without a token. Spans have all slots in order, in which case
    `Span.slot` is None, or some in any order; `all_slots` says which, if it is not to be drawn for each schedule.
    """
    seen: Counter[Form] = Counter()

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
    )
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        schedule = Schedule(system, inputs, spec, tolerance, data, all_slots)
        for step in range(steps):
            form = list(WIDTH)[step % len(WIDTH)]
            schedule.prelude()
            seen[form] += schedule.span(form)

    run()
    unseen = set(list(WIDTH)[:steps]) - {form for form, tokens in seen.items() if tokens}
    assert not unseen, f"no token went through: {', '.join(unseen)}; draw more examples or steps"


class Schedule:
    """One schedule as it unfolds: memory under test beside the plain list of what each slot has read."""

    def __init__(
        self,
        system: System,
        inputs: Inputs,
        spec: StateSpec,
        tolerance: float,
        data: st.DataObject,
        all_slots: bool | None,
    ):
        self.system, self.inputs, self.spec, self.tolerance, self.data = system, inputs, spec, tolerance, data
        self.rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
        self.state = poisoned(system.init_state(spec))
        self.read: list[list[np.ndarray]] = [[] for _ in range(spec.slots)]
        self.owned: list[list[int]] = [[] for _ in range(spec.slots)]
        self.free = [int(page) for page in self.rng.permutation(spec.n_pages)]
        self.all_slots = spec.slots == 1 or (data.draw(st.booleans()) if all_slots is None else all_slots)
        self.saved: Any = None

    def prelude(self) -> None:
        """What may happen between two spans."""
        happening = self.data.draw(st.sampled_from(["nothing", "nothing", "reuse", "snapshot", "restore"]))
        if happening == "reuse":  # nobody clears the memory: the first span of the new sequence says start = 0
            slot = self.data.draw(st.integers(0, self.spec.slots - 1))
            self.free, self.owned[slot], self.read[slot] = [*self.owned[slot], *self.free], [], []
        elif happening == "snapshot":
            self.saved = copied(self.state), deepcopy((self.read, self.owned, self.free))
        elif happening == "restore" and self.saved:
            self.state, (self.read, self.owned, self.free) = copied(self.saved[0]), deepcopy(self.saved[1])

    def span(self, form: Form) -> int:
        """Any span: all slots in order, or some slots in any order. Returns how many tokens it had."""
        slots = range(self.spec.slots)
        rows = list(slots) if self.all_slots else self.data.draw(st.permutations(slots))[:-1]
        draft = self.draw_draft(form, rows)
        keep, n_keep = self.draw_kept(draft)
        x, at = self.poisoned_inputs(draft), self.place(draft)
        before = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), self.state)
        y, self.state = advance(self.system, x, self.state, at, keep, n_keep)
        assert before == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), self.state), "memory changed its shape"
        self.compare(draft, x, np.asarray(y))
        for i, slot in enumerate(rows):
            self.read[slot] += [x[i, j] for j in keep[i, : n_keep[i]]]
        return sum(draft.n)

    def draw_draft(self, form: Form, rows: list[int]) -> Draft:
        """How many tokens each row gets, and who follows whom."""
        t = WIDTH[form]
        n = [self.draw_n(t, self.spec.max_len - len(self.read[slot])) for slot in rows]
        parent = np.tile(np.arange(t) - 1, (len(rows), 1))
        if form == "tree":
            parent = np.array([[self.data.draw(st.integers(-1, j - 1)) for j in range(t)] for _ in rows])
        paths = [[path_to(j, parent[i]) for j in range(n[i])] for i in range(len(rows))]
        return Draft(form, rows, n, parent.astype(np.int32), paths)

    def draw_n(self, t: int, room: int) -> int:
        """How many of t tokens are real; full spans come up as often as empty ones."""
        return min(self.data.draw(st.sampled_from([t, *range(t)])), room)

    def draw_kept(self, draft: Draft) -> tuple[np.ndarray, np.ndarray]:
        """Which tokens stay: all, any prefix, or any path, by the form. `keep` is wider than any path."""
        b, t = draft.parent.shape
        keep, n_keep = np.full((b, t + 1), WILD, np.int32), np.zeros(b, np.int32)
        for i, paths in enumerate(draft.paths):
            last = len(paths) - 1
            if draft.form in ("draft", "tree"):
                last = self.data.draw(st.integers(-1, last))
            path = paths[last] if last >= 0 else []
            keep[i, : len(path)], n_keep[i] = path, len(path)
        return keep, n_keep

    def poisoned_inputs(self, draft: Draft) -> np.ndarray:
        """Inputs for the span; what stands in padding must not matter."""
        x = self.inputs(self.rng, draft.parent.shape)
        for i, n in enumerate(draft.n):
            x[i, n:] = poison(x.dtype)
        return x

    def place(self, draft: Draft) -> Span:
        """The Span of a draft, with pages for the rows it will write."""
        start = np.array([len(self.read[slot]) for slot in draft.rows], np.int32)
        n = np.array(draft.n, np.int32)
        slot = None if self.all_slots else np.array(draft.rows, np.int32)
        pages = self.tables(draft, start + n) if self.spec.kind == "paged" else None
        if draft.form == "tree":
            return Span.tree(start, n, draft.parent, slot, pages)
        return Span.chain(start, n, draft.parent.shape[1], slot, pages, rewind=draft.form == "draft")

    def tables(self, draft: Draft, lengths: np.ndarray) -> np.ndarray:
        """Page tables that reach as far as they must; pages come from anywhere."""
        size = self.spec.page_size
        tables = np.full((len(draft.rows), -(-self.spec.max_len // size)), WILD, np.int32)
        for i, slot in enumerate(draft.rows):
            while len(self.owned[slot]) * size < lengths[i]:
                self.owned[slot].append(self.free.pop())
            tables[i, : len(self.owned[slot])] = self.owned[slot]
        return tables

    def compare(self, draft: Draft, x: np.ndarray, y: np.ndarray) -> None:
        """Every real output against the same token at the end of its whole sequence."""
        cells = [(i, j) for i, n in enumerate(draft.n) for j in range(n)]
        if not cells:
            return
        whole = np.full((*whole_shape(self.spec), *x.shape[2:]), poison(x.dtype), x.dtype)
        n = np.zeros(len(whole), np.int32)
        for row, (i, j) in enumerate(cells):
            sequence = [*self.read[draft.rows[i]], *(x[i, step] for step in draft.paths[i][j])]
            whole[row, : len(sequence)], n[row] = sequence, len(sequence)
        expected = np.asarray(read_whole(self.system, whole, n, self.changing_memory()))
        expected = expected[np.arange(len(cells)), n[: len(cells)] - 1]
        close(np.array([y[cell] for cell in cells]), expected, self.tolerance, f"{draft.form} {draft}")

    def changing_memory(self) -> Any:
        """An empty memory for whole sequences, if what is read from it is not what was written; else none."""
        if not self.spec.alters:
            return None
        kind = "contiguous" if self.spec.kind == "paged" else self.spec.kind
        return poisoned(self.system.init_state(replace(self.spec, kind=kind, slots=whole_shape(self.spec)[0])))


def check_causality(system: System, inputs: Inputs, *, spec: StateSpec = SPEC, seed: int = 0) -> None:
    """Change every token from each of several places on: nothing before it changes, bit for bit."""
    rng = np.random.default_rng(seed)
    b, t = whole_shape(spec)
    x, other = inputs(rng, (b, t)), inputs(rng, (b, t))
    n = np.full(b, t, np.int32)
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
    """The compiled step returns its memory in the buffers it came in: there are never two of it."""
    state = jax.tree.map(jnp.asarray, system.init_state(spec))
    b = spec.slots
    x, ones = inputs(np.random.default_rng(0), (b, 1)), np.ones(b, np.int32)
    pages = np.arange(b * 2, dtype=np.int32).reshape(b, 2) if spec.kind == "paged" else None
    at = Span.chain(np.zeros(b, np.int32), ones, 1, pages=pages)
    keep = np.zeros((b, 2), np.int32)  # as wide as the schedules' step, so that one compiled program serves both
    compiled = advance.lower(system, x, state, at, keep, ones).compile()
    outputs = re.findall(r"\{(\d+)\}: \(\d+, \{\}, m\w+-alias\)", compiled.as_text() or "")
    leaves = len(jax.tree.leaves(state))
    copied = set(range(1, 1 + leaves)) - {int(output) for output in outputs}  # output 0 is y
    assert not copied, f"{len(copied)} of {leaves} arrays of memory are not updated in place"


def whole_shape(spec: StateSpec) -> tuple[int, int]:
    """The one [b, t] in which whole sequences are read: wide enough for every token of a span, each its own row."""
    return spec.slots * max(WIDTH.values()), spec.max_len


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
    """Memory in which nothing was written: NaN wherever a NaN fits, and in bytes that may be part of one."""

    def unwritten(leaf: jax.Array) -> jax.Array:
        if leaf.dtype == jnp.int8:
            return jnp.full_like(leaf, -1)
        return jnp.full_like(leaf, jnp.nan) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(unwritten, state)


def copied(state: Any) -> Any:
    """Memory that donating the original does not touch."""
    return jax.tree.map(jnp.copy, state)


def close(found: np.ndarray, expected: np.ndarray, tolerance: float, what: str) -> None:
    """Largest error over largest output, with NaN never close."""
    error = np.max(np.abs(found - expected)) / np.max(np.abs(expected))
    assert error <= tolerance, f"outputs differ by {error:.2e} of the largest, more than {tolerance:.0e}, in {what}"
