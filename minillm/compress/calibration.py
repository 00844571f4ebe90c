"""Calibration: what goes into every matrix of a model while it reads a text.

GPTQ and SparseGPT need the second moments of a matrix's inputs, Wanda and the importance matrices of GGUF files
their diagonal, AWQ the mean and SmoothQuant the largest magnitude of each input channel. All of it is counted in
one pass, by weights that multiply as before and tell what they were given.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.experimental import io_callback

from ..errors import UserError
from ..model import Model
from ..quant import by_place, is_weight
from ..quant.grouped import grouped_gradient
from ..span import Span
from ..tokenizer import Tokenizer

WINDOW = 256  # tokens that are read together
ROWS = 4  # windows in a batch


@dataclass
class Inputs:
    """Of the n rows x [in] that a matrix was multiplied with; with a leading axis e for e experts.

    n        f32 [] or [e]
    gram     f32 [in, in]  the sum of x^T x
    mean     f32 [in]      the sum of |x|, divided by n
    largest  f32 [in]      the largest |x|
    """

    n: np.ndarray
    gram: np.ndarray
    mean: np.ndarray
    largest: np.ndarray

    def with_more(self, more: "Inputs") -> "Inputs":
        """Of these rows and of others."""
        n = self.n + more.n
        share = (more.n / np.maximum(n, 1))[..., None]
        mean = self.mean + share * (more.mean - self.mean)
        return Inputs(n, self.gram + more.gram, mean, np.maximum(self.largest, more.largest))


class Tally:
    """The inputs of all matrices of a model, by their number."""

    def __init__(self):
        self.inputs: dict[int, Inputs] = {}

    def add(self, number, *counted) -> None:
        """Take note of inputs; XLA calls it while a model runs, so it must not use JAX."""
        number, more = int(number), Inputs(*map(np.array, counted))
        self.inputs[number] = self.inputs[number].with_more(more) if number in self.inputs else more


@struct.dataclass
class Watched:
    """A weight that tells `tally` what it is multiplied with.

    Its number is an array and not part of the program, so that layers of a kind still share one.
    """

    weight: Any
    number: jax.Array
    tally: Tally = struct.field(pytree_node=False)

    __array_ufunc__ = None

    @property
    def shape(self) -> tuple[int, int]:
        """(in, out)."""
        return self.weight.shape

    @property
    def T(self) -> "Watched":
        """The transpose, watched too."""
        return Watched(self.weight.T, self.number, self.tally)

    def __rmatmul__(self, x: jax.Array) -> jax.Array:
        """x [..., in] @ self -> [..., out]."""
        flat = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
        size = jnp.abs(flat)
        n = jnp.float32(len(flat))
        io_callback(self.tally.add, None, self.number, n, flat.T @ flat, jnp.mean(size, 0), jnp.max(size, 0))
        return x @ self.weight

    def grouped(self, x: jax.Array, sizes: jax.Array) -> jax.Array:
        """x [rows, in] sorted by group, sizes i32 [e] -> [rows, out]."""
        flat = x.astype(jnp.float32)
        size, of = jnp.abs(flat), jnp.repeat(jnp.arange(len(sizes)), sizes, total_repeat_length=len(x))
        inside = jnp.arange(len(x)) < jnp.sum(sizes)
        size = jnp.where(inside[:, None], size, 0)
        n = sizes.astype(jnp.float32)
        total = jnp.zeros((len(sizes), x.shape[1])).at[of].add(size)
        largest = jnp.zeros((len(sizes), x.shape[1])).at[of].max(size)
        gram = grouped_gradient(flat, flat, sizes)
        io_callback(self.tally.add, None, self.number, n, gram, total / jnp.maximum(n, 1)[:, None], largest)
        return self.weight.grouped(x, sizes)

    def rows(self, ids: jax.Array) -> jax.Array:
        """Rows of the matrix, of which nothing is told."""
        return self.weight.rows(ids)

    def dense(self) -> jax.Array:
        """The matrix."""
        return self.weight.dense()


def calibrated(model: Model, batches: Iterator[np.ndarray]) -> Iterator[dict[str, Inputs]]:
    """Read batches of tokens i32 [b, t]; after each, yields what went into every matrix so far, by its place.

    Places are those of `quant.recipes`. A matrix that has multiplied nothing is not among them; a tied embedding
    is, for what it multiplies as the head.
    """
    tally = Tally()
    leaves, tree = by_place(model)
    watched = tree.unflatten(
        Watched(leaf, jnp.int32(i), tally) if is_weight(leaf) else leaf for i, (_, leaf) in enumerate(leaves)
    )
    for tokens in batches:
        jax.block_until_ready(read(watched, jnp.asarray(tokens, jnp.int32)))
        jax.effects_barrier()
        yield {leaves[i][0]: inputs for i, inputs in sorted(tally.inputs.items())}


@jax.jit
def read(model: Model, tokens: jax.Array) -> jax.Array:
    """Logits [b, t, v] of whole windows tokens i32 [b, t]."""
    b, t = tokens.shape
    return model(tokens, None, Span.chain(jnp.zeros(b, jnp.int32), jnp.full(b, t, jnp.int32), t))[0]


def windows(tokenizer: Tokenizer, texts: Sequence[str], longest: int) -> list[np.ndarray]:
    """Texts as batches of tokens i32 [ROWS, t], one text following the other and cut where a window is full.

    t is WINDOW, or `longest` if that is less. What does not fill a last batch is left out, unless that is all:
    then UserError.
    """
    t = min(WINDOW, longest)
    tokens = np.array([token for text in texts for token in tokenizer.encode(text)], np.int32)
    n = len(tokens) // (t * ROWS)
    if n == 0:
        raise UserError(f"the text for calibration has {len(tokens)} tokens, expected {t * ROWS} or more")
    return list(tokens[: n * t * ROWS].reshape(n, ROWS, t))
