"""The verifier: one pass of the model over drafted tokens, and which of them stay.

After every token of the span the next one is drawn, with the very random numbers that plain generation would
use at that position. A drafted token stays if it is what was drawn after the one before it. So what comes out
is what plain generation gives, token for token and whatever was drafted; greedy decoding is no special case.

It is the rule of Leviathan et al. 2022 (arXiv:2211.17192; `ops.accept`) for a drafter that is certain of its
tokens: x stays with probability p(x), and what replaces it is distributed as the rest of p. Drawing drafts from
a distribution q would let a few more stay (measured with our small models: 75 % against 74 %), but then the
text of a seed would depend on how many tokens were drafted.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from ..model import Model
from ..sampling import History, Sampler
from ..span import Span, ancestors


@struct.dataclass
class Guess:
    """Tokens to be read: `given` ones that are known to stay, then drafted ones.

    tokens  i32 [b, t], of which n i32 [b] are real and the first given i32 [b], one or more, known
    parent  i32 [b, t], the token that each one follows, -1 for the first; None: a chain
    slot    i32 [b], each row's place in memory and history; None: its own number
    pages   as in `Span`
    """

    tokens: Any
    given: Any
    n: Any
    parent: Any = None
    slot: Any = None
    pages: Any = None


@partial(jax.jit, donate_argnames=("state", "history"))
def verify(
    model: Model, state: tuple, history: History | None, sampler: Sampler, guess: Guess, start: jax.Array
) -> tuple[tuple, History | None, jax.Array, jax.Array]:
    """Take in a guess at positions start i32 [b] … -> memory and history of what stays, tokens i32 [b, t], n
    i32 [b].

    The n tokens are the drafted ones that stay, then one more, drawn after them; -1 follows. A row without real
    tokens changes nothing and gives nothing.
    """
    t = guess.tokens.shape[1]
    if guess.parent is None:
        at = Span.chain(start, guess.n, t, guess.slot, guess.pages, rewind=True)
    else:
        at = Span.tree(start, guess.n, guess.parent, guess.slot, guess.pages)
    hidden, pending = model.hidden(guess.tokens, state, at)
    mine = None if history is None else history.of(guess.slot)
    drawn = draw_after_each(sampler, model.logits(hidden), mine, guess, at)
    path, n_kept = kept_path(guess, drawn)

    state = model.commit(pending, at, path, n_kept)
    if history is not None and mine is not None:
        kept = jnp.take_along_axis(guess.tokens, path, axis=1)
        history = history.with_rows(guess.slot, mine.observe(kept, Span.chain(start, n_kept, t)))
    index = jnp.arange(t, dtype=jnp.int32) + guess.given[:, None] - 1
    following = jnp.take_along_axis(drawn, path, axis=1)  # a token that stays is what was drawn before it
    n_new = jnp.maximum(n_kept - guess.given + 1, 0)
    new = jnp.take_along_axis(following, jnp.minimum(index, t - 1), axis=1)
    return state, history, jnp.where(jnp.arange(t, dtype=jnp.int32) < n_new[:, None], new, -1), n_new


def kept_path(guess: Guess, drawn: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The indices i32 [b, t] of the tokens that stay, 0 behind them, and how many they are, i32 [b].

    drawn i32 [b, t] is what was drawn after each token.
    """
    b, t = guess.tokens.shape
    path, n = jnp.zeros((b, t), jnp.int32), jnp.minimum(guess.n, 1)
    row, last = jnp.arange(b, dtype=jnp.int32), jnp.zeros(b, jnp.int32)
    for j in range(1, t):
        follows = last == (j - 1 if guess.parent is None else guess.parent[:, j])
        agrees = (drawn[row, last] == guess.tokens[:, j]) | (j < guess.given)
        stays = follows & agrees & (j < guess.n)
        path = path.at[row, jnp.where(stays, n, t)].set(j, mode="drop")
        last, n = jnp.where(stays, j, last), n + stays.astype(jnp.int32)
    return path, n


def draw_after_each(
    sampler: Sampler, logits: jax.Array, history: History | None, guess: Guess, at: Span
) -> jax.Array:
    """What the sampler draws after each token of a span: logits [b, t, v] -> i32 [b, t]."""
    if history is None:
        return jax.vmap(lambda row, pos: sampler(row, pos, None), 1, 1)(logits, at.pos + 1)
    along = along_paths(history, guess, at)
    axes: Any = (1, 1, None)  # of seen, counts and prompt
    return jax.vmap(sampler, (1, 1, History(*axes)), 1)(logits, at.pos + 1, along)


def along_paths(history: History, guess: Guess, at: Span) -> History:
    """What the penalties look at after each token of a span: seen and counts [b, t, v]."""
    (b, t), v = guess.tokens.shape, history.seen.shape[1]
    parent = jnp.arange(-1, t - 1, dtype=jnp.int32)[None] if guess.parent is None else guess.parent
    line = jnp.broadcast_to(ancestors(parent), (b, t, t)).astype(jnp.float32)
    ids = jax.nn.one_hot(guess.tokens, v)
    generated = jnp.where((at.pos >= history.prompt[:, None])[:, :, None], ids, 0)
    seen = jnp.einsum("bij,bjv->biv", line, ids) > 0
    counts = jnp.einsum("bij,bjv->biv", line, generated).astype(jnp.int32)
    return History(history.seen[:, None] | seen, history.counts[:, None] + counts, history.prompt)
