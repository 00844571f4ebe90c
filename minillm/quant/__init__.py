"""Weights: how a matrix is stored, and how it multiplies. Model code never asks which class it holds.

x @ w         [..., in] -> [..., out]
x @ w.T       [..., out] -> [..., in]       (a tied head is the embedding's transpose)
w.rows(ids)   rows of the matrix, for an embedding
w.dense()     the matrix [in, out] in floating point: the definition of everything above
w.shape       (in, out)

A weight may hold one matrix for each of e groups, the experts of a layer. Then w.dense() is [e, in, out], w.shape
still (in, out), and the only product is

w.grouped(x, sizes)   [rows, in] -> [rows, out]: rows come sorted by group, sizes i32 [e] of each; row j of group i
                      is x[j] @ w.dense()[i], and what lies beyond sum(sizes) is of no group and gives 0
"""

from typing import Protocol

import jax

from .dense import Dense

__all__ = ["Dense", "Weight"]


class Weight(Protocol):
    """What every class of weight can do."""

    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def T(self) -> "Weight": ...
    def __rmatmul__(self, x: jax.Array) -> jax.Array: ...
    def grouped(self, x: jax.Array, sizes: jax.Array) -> jax.Array: ...
    def rows(self, ids: jax.Array) -> jax.Array: ...
    def dense(self) -> jax.Array: ...
