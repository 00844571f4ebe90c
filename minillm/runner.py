"""The engine's hands: the model, what it remembers of every row, and the programs that go on with some of them.

The engine thinks in requests and lists, the programs in arrays; here one becomes the other.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .cache import StateSpec
from .cache.prefix import restored, snapshot, with_copied_page
from .model import Model
from .request import Request
from .sampling import History, Sampler, together
from .span import Span
from .speculative import Tree
from .speculative.decode import new_guess
from .speculative.verify import verify
from .xla import on_device

LEAST_TABLE = 8  # pages
Rows = Sequence[Request | None]  # who is in some rows of the batch; None: nobody


class Runner:
    """A model with its memory.

    state     of all rows, as `spec` describes
    history   what penalties look at; None as long as there was no request that has any
    steady    programs have one shape, whoever else is there
    """

    def __init__(self, model: Model, spec: StateSpec, v: int, steady: bool):
        self.model, self.spec, self.v, self.steady = model, spec, v, steady
        self.state: Any = model.init_state(spec)
        self.history: History | None = None

    def read(self, rows: Rows, slot: list[int], chunks: list[list[int]], width: int) -> list[int]:
        """Take in a chunk of the texts of the first rows, nothing of the others'; the token that follows each."""
        tokens, n = np.zeros((len(slot), width), np.int32), np.zeros(len(slot), np.int32)
        for row, chunk in enumerate(chunks):
            n[row], tokens[row, : len(chunk)] = len(chunk), chunk
        sampler = together([request and request.sampler for request in rows])
        at = (starts(rows), n, np.array(slot, np.int32), self.tables(rows))
        self.state, self.history, drawn = read(self.model, self.state, self.history, sampler, tokens, *at)
        return np.asarray(drawn).tolist()

    def decode(
        self, rows: Rows, slot: list[int] | None, wanted: list[tuple[list[int], Tree] | None], t: int, exact: bool
    ) -> list[list[int]]:
        """Take in the given tokens and the draft tree of each row, t together at most; the tokens that follow.

        slot is None for all rows; exact: one program whatever was drafted and however it is drawn.
        """
        slots = None if slot is None else np.array(slot, np.int32)
        guess = new_guess(wanted, t, exact, slots, self.tables(rows))
        sampler = together([request and request.sampler for request in rows], exact)
        self.state, self.history, tokens, n = verify(
            self.model, self.state, self.history, sampler, guess, starts(rows)
        )
        lengths = np.asarray(n).tolist()
        return [row[:length] for row, length in zip(np.asarray(tokens).tolist(), lengths, strict=True)]

    def begin(self, request: Request, counted: bool) -> None:
        """A request got a row: from here on penalties look at its text, if it has any or all are counted."""
        if (request.sampler.penalises or counted) and self.history is None:
            self.history = History.empty(on_device(np.zeros(self.spec.slots, np.int32)), self.v)
        if self.history is not None:
            self.history = begun(self.history, slot_of(request), *seen_so_far(request, self.v))

    def save(self, request: Request) -> Any:
        """What there is of a request outside of pages."""
        return snapshot(self.state, slot_of(request))

    def restore(self, request: Request, saved: Any) -> None:
        """Let a request go on from there."""
        self.state = restored(self.state, slot_of(request), saved)

    def copy_page(self, source: int, target: int) -> None:
        """Have the rows of one page in another as well."""
        self.state = with_copied_page(self.state, np.int32(source), np.int32(target))

    def tables(self, rows: Rows) -> np.ndarray | None:
        """Page tables i32 [b, p]; None without pages.

        Attention looks at all rows that a table could reach, so it is no longer than it has to be, in steps of
        four times the length: each is a program of its own.
        """
        if self.spec.kind != "paged":
            return None
        most = -(-self.spec.max_len // self.spec.page_size)
        longest = max(len(request.pages) for request in rows if request)
        width = most if self.steady else LEAST_TABLE
        while width < longest:
            width *= 4
        table = np.zeros((len(rows), min(width, most)), np.int32)
        for row, request in zip(table, rows, strict=True):
            if request:
                row[: len(request.pages)] = request.pages
        return table


@partial(jax.jit, donate_argnames=("state", "history"))
def read(
    model: Model,
    state: tuple,
    history: History | None,
    sampler: Sampler,
    tokens: jax.Array,
    start: jax.Array,
    n: jax.Array,
    slot: jax.Array,
    pages: jax.Array | None,
) -> tuple[tuple, History | None, jax.Array]:
    """Take in n [b] of tokens i32 [b, t] of the sequences in slots i32 [b]; draw the token after them, i32 [b]."""
    b, t = tokens.shape
    at = Span.chain(start, n, t, slot, pages)
    hidden, pending = model.hidden(tokens, state, at)
    state = model.commit(pending, at, keep=jnp.broadcast_to(jnp.arange(t, dtype=jnp.int32), (b, t)), n_keep=n)
    mine = None
    if history is not None:
        mine = history.of(slot).observe(tokens, at)
        history = history.with_rows(slot, mine)
    logits = model.logits(hidden[jnp.arange(b, dtype=jnp.int32), jnp.maximum(n - 1, 0)])
    return state, history, sampler(logits, start + n, mine)


def starts(rows: Rows) -> np.ndarray:
    """How many tokens of each are in memory, i32 [b]."""
    return np.array([request.known if request else 0 for request in rows], np.int32)


def slot_of(request: Request) -> np.int32:
    """The row that a request has."""
    assert request.slot is not None
    return np.int32(request.slot)


def seen_so_far(request: Request, v: int) -> tuple[np.ndarray, np.ndarray, np.int32]:
    """What penalties look at of a text in memory: seen bool [v], counts i32 [v], and its prompt's length."""
    known, prompt = request.text[: request.known], len(request.prompt)
    counts = np.bincount(known[prompt:], minlength=v).astype(np.int32)
    return np.bincount(known, minlength=v) > 0, counts, np.int32(prompt)


@partial(jax.jit, donate_argnums=0)
def begun(history: History, slot: jax.Array, seen: jax.Array, counts: jax.Array, prompt: jax.Array) -> History:
    """The history with a new text in a slot, of which this was seen so far."""
    return History(
        history.seen.at[slot].set(seen), history.counts.at[slot].set(counts), history.prompt.at[slot].set(prompt)
    )
