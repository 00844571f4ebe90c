"""A small model drafts for a large one (Leviathan et al. 2022, arXiv:2211.17192); both must have the same tokens.

It may be the large one itself without some of its layers (Zhang et al. 2023, arXiv:2309.08168): what a layer
adds to the residual stream is little, so the rest still guesses well, and there is no second model to load.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ..cache import StateSpec
from ..config import Config
from ..errors import UserError
from ..generate import CHUNK, LEAST_MEMORY, bucket, enlarged, i32, padded
from ..model import Model
from ..span import Span
from .trie import Tree, trie

LEAST_NEW = 4  # tokens read at once, at least: as many as the shortest draft may have left


class DraftModel:
    """Drafts what the model finds likeliest; after each token the likeliest `branches`, of which the first goes on.

    With branches a draft is so much shorter. Its memory goes along with the text; a text that does not go on the
    last one is read from its beginning.
    """

    def __init__(self, model: Model, context: int, branches: int = 1):
        self.model, self.context, self.branches = model, context, branches
        self.read: list[int] = []
        self.capacity, self.state = 0, ()

    def draft(self, text: Sequence[int], most: int) -> Tree:
        """What may follow text, up to `most` tokens; none if it has outgrown the model's context."""
        if len(text) + most > self.context:
            return Tree()
        if self.read != list(text[: len(self.read)]) or len(self.read) == len(text):
            self.read = []
        self.make_room(len(text) + most)
        new = text[len(self.read) :]
        while len(new) > CHUNK:
            self.take_in(new[:CHUNK], 0)
            new = text[len(self.read) :]
        likely = self.take_in(new, max(most // self.branches, 1))
        chain = [row[0] for row in likely]
        others = [[*chain[:i], token] for i, row in enumerate(likely) for token in row[1:]]
        return trie([chain, *others], most)

    def take_in(self, new: Sequence[int], most: int) -> list[list[int]]:
        """Read new tokens, and guess `most` more: the likeliest of each place, [most, branches]."""
        tokens, n = padded(new, LEAST_NEW)
        start = i32(len(self.read))
        self.state, likely = read_and_guess(self.model, self.state, tokens, start, i32(n), most, self.branches)
        self.read += new
        return likely.tolist()

    def make_room(self, rows: int) -> None:
        """A memory of that many rows, in which what was read is still there."""
        if rows <= self.capacity:
            return
        self.capacity = min(bucket(rows, LEAST_MEMORY), self.context)
        larger = self.model.init_state(StateSpec(slots=1, max_len=self.capacity))
        self.state = enlarged(self.state, larger) if self.state else larger


@partial(jax.jit, donate_argnames="state", static_argnames=("most", "branches"))
def read_and_guess(
    model: Model, state: tuple, tokens: jax.Array, start: jax.Array, n: jax.Array, most: int, branches: int
) -> tuple[tuple, jax.Array]:
    """Commit n [1] of tokens i32 [1, t] at start [1]; go on greedily for `most` tokens that are not committed.

    -> the memory with the tokens and nothing else, and i32 [most, branches] as in `DraftModel.take_in`.
    """

    def forward(state: tuple, tokens: jax.Array, start: jax.Array, n: jax.Array) -> tuple[tuple, jax.Array]:
        at = Span.chain(start, n, tokens.shape[1])
        hidden, pending = model.hidden(tokens, state, at)
        keep = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        likely = jax.lax.top_k(model.logits(hidden[0, n - 1])[0], branches)[1].astype(jnp.int32)
        return model.commit(pending, at, keep, n), likely

    def guess(so_far: Any, place: jax.Array) -> tuple[Any, jax.Array]:
        scratch, likely = so_far
        return forward(scratch, likely[None, :1], place[None], jnp.ones_like(n)), likely

    after, likely = forward(state, tokens, start, n)
    _, guesses = jax.lax.scan(guess, (after, likely), start + n + jnp.arange(most, dtype=jnp.int32))
    return after, guesses


def without_layers(model: Any, config: Config, n: int) -> Any:
    """The model less n layers, evenly spread; the first and the last stay. UserError if it has too few."""
    layers = len(config.layers)
    if not 0 < n <= layers - 2:
        raise UserError(
            f"the model has {layers} layers, of which {n} cannot be skipped; expected 1 to {layers - 2}"
        )
    skipped = {1 + (2 * i + 1) * (layers - 2) // (2 * n) for i in range(n)}
    first, kept = 0, []
    for i, layer in enumerate(config.layers):
        kept += [] if i in skipped else model.blocks[first : first + len(layer)]
        first += len(layer)
    return model.replace(blocks=tuple(kept))
