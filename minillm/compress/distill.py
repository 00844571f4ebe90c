"""Recovery: a pruned model learns again what it has lost, from the model that it was made of.

The whole distribution of the next token is the lesson (Hinton et al. 2015, arXiv:1503.02531), so that a text of a
few pages goes a long way. It needs no text at all: the teacher can write its own (LLM-QAT, Liu et al. 2023,
arXiv:2305.17888), which is then as varied as what it knows.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..cache import StateSpec
from ..errors import UserError
from ..model import Model
from ..quant.quantised import Progress
from ..span import Span
from ..tokenizer import Tokenizer
from ..train import Batch, fresh_state, restored, train

LENGTH = 256  # tokens of a row
ROWS = 16  # of a batch
RATE = 1e-3
PAGES = 16  # batches that a teacher writes


def recovered(
    model: Any,
    teacher: Model,
    lessons: Batch,
    steps: int,
    file: Path,
    *,
    seed: int = 0,
    progress: Progress = lambda *_: None,
) -> Any:
    """The pruned model after so many steps of training on lessons with its teacher's word.

    lessons are all rows there are. What is learned so far is kept in `file`, and a killed run goes on from there.
    """
    student = jax.tree.map(jnp.array, model)  # steps write over its arrays, some of which may be the teacher's
    run = train(student, drawn(lessons, seed), steps, rate=RATE, file=file, teacher=teacher)
    for step, _, nats in run:
        progress(f"learning again, {nats:.2f} nats", step, steps)
    return restored(file, fresh_state(model, steps, RATE)).model


def drawn(lessons: Batch, seed: int) -> Callable[[int], Batch]:
    """The batch of a step: ROWS of all rows by lot, which only the seed and the step's number decide."""

    def batch_at(step: int) -> Batch:
        rows = np.random.default_rng((seed, step)).choice(len(lessons.n), ROWS, replace=len(lessons.n) < ROWS)
        return Batch(lessons.tokens[rows], lessons.n[rows])

    return batch_at


def given(tokenizer: Tokenizer, texts: Sequence[str], longest: int) -> Batch:
    """Texts as rows of LENGTH tokens, or `longest` if that is less; a text that is longer takes several.

    UserError if there is no pair of tokens in them to learn from.
    """
    t, pieces = min(LENGTH, longest), []
    for text in texts:
        ids = [*tokenizer.encode(text), *tokenizer.ends[:1]]
        pieces += [ids[i : i + t] for i in range(0, len(ids), t)]
    pieces = [piece for piece in pieces if len(piece) > 1]
    if not pieces:
        raise UserError("the text to recover with is empty, expected some sentences")
    tokens = np.zeros((len(pieces), t), np.int32)
    for row, piece in zip(tokens, pieces, strict=True):
        row[: len(piece)] = piece
    return Batch(tokens, np.array([len(piece) for piece in pieces], np.int32))


def written(
    teacher: Model, tokenizer: Tokenizer, longest: int, seed: int = 0, progress: Progress = lambda *_: None
) -> Batch:
    """PAGES batches of rows as `given` makes them, but as the teacher writes them, drawn at temperature 1.

    A text begins with what texts begin with, or with what ends one where that is nothing.
    """
    t, begin = min(LENGTH, longest), (tokenizer.encode("") or tokenizer.ends)[0]
    first, pages = jnp.full(ROWS, begin, jnp.int32), []
    for page in range(PAGES):
        key = jax.random.fold_in(jax.random.key(seed), page)
        pages.append(np.asarray(sampled(teacher, first, key, t)))
        progress("writing texts", page + 1, PAGES)
    tokens = np.concatenate(pages)
    ended = np.isin(tokens[:, 1:], tokenizer.ends)
    return Batch(tokens, np.where(ended.any(axis=1), ended.argmax(axis=1) + 2, t).astype(np.int32))


@partial(jax.jit, static_argnames="t")
def sampled(model: Model, first: jax.Array, key: jax.Array, t: int) -> jax.Array:
    """Rows of t tokens i32 [b, t] that begin with tokens i32 [b]."""
    one = jnp.ones_like(first)

    def step(so_far: tuple, place: jax.Array) -> tuple[tuple, jax.Array]:
        state, token = so_far
        at = Span.chain(place * one, one, 1)
        logits, pending = model(token[:, None], state, at)
        state = model.commit(pending, at, jnp.zeros((len(first), 1), jnp.int32), one)
        token = jax.random.categorical(jax.random.fold_in(key, place), logits[:, 0]).astype(jnp.int32)
        return (state, token), token

    state = model.init_state(StateSpec(slots=len(first), max_len=t))
    rest = jax.lax.scan(step, (state, first), jnp.arange(t - 1, dtype=jnp.int32))[1]
    return jnp.concatenate([first[None], rest]).T
