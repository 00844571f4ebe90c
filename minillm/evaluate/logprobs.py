"""How likely a model finds each token of a text, and which others it would rather have said."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..generate import bucket, padded
from ..model import Model
from ..span import Span


class LogProb(NamedTuple):
    """A token, ln p(token | what came before), and the tokens likeliest there, each with its own."""

    id: int
    logprob: float
    top: list[tuple[int, float]]


def log_probs(model: Model, prompt: Sequence[int], tokens: Sequence[int], n: int) -> list[LogProb]:
    """What a model thinks of tokens after a prompt, with the n likeliest in each one's place.

    They are read in one pass, so sums are rounded a little differently than when the tokens were drawn.
    """
    if not tokens:
        return []
    row, length = padded([*prompt, *tokens])
    places = np.full(bucket(len(tokens), 16), len(prompt) - 1, np.int32)
    places[: len(tokens)] += np.arange(len(tokens), dtype=np.int32)
    found = likeliest(model, row, np.array([length], np.int32), places, min(max(n, 1), model.embed.shape[0]))
    chosen, ids, values = (np.asarray(one) for one in found)
    return [
        LogProb(int(token), chosen[i].item(), list(zip(ids[i].tolist()[:n], values[i].tolist()[:n], strict=True)))
        for i, token in enumerate(tokens)
    ]


@partial(jax.jit, static_argnames="n")
def likeliest(model: Model, row: jax.Array, length: jax.Array, places: jax.Array, n: int) -> tuple:
    """ln p of the token after each place [m], and the n likeliest there, ids i32 [m, n] and ln p [m, n].

    row i32 [1, t], length i32 [1] of it real, places i32 [m].
    """
    hidden, _ = model.hidden(row, None, Span.chain(jnp.zeros_like(length), length, row.shape[1]))

    def look(place: jax.Array) -> tuple:
        found = jax.nn.log_softmax(model.logits(hidden[0, place]))  # of one place: of all they would be large
        values, ids = jax.lax.top_k(found, n)
        return found[row[0, place + 1]], ids, values

    return jax.lax.map(look, places)
