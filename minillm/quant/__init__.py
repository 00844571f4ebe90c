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

from collections.abc import Callable
from typing import Any, Protocol

import jax

from .dense import Dense

__all__ = ["Dense", "Weight", "as_stored", "as_weights", "by_place", "in_dtype", "is_weight"]


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


def in_dtype(parts: Any, dtype: str | None) -> Any:
    """Plain parameters, arrays or shapes, as numbers of another floating-point type; with None as they are."""
    if dtype is None:
        return parts

    def one(leaf: Any) -> Any:
        is_shape = isinstance(leaf, jax.ShapeDtypeStruct)
        return jax.ShapeDtypeStruct(leaf.shape, dtype) if is_shape else leaf.astype(dtype)

    return jax.tree.map(one, parts)


def is_weight(node: Any) -> bool:
    """Whether a part of a model is a weight."""
    return hasattr(node, "grouped") and hasattr(node, "dense")


def as_weights(model: Any) -> Any:
    """A model whose blocks took weights for the arrays of a `Dense`, without these."""

    def inside(leaf: Any) -> Any:
        if isinstance(leaf, Dense) and is_weight(leaf.array):
            weight: Any = leaf.array
            return weight.T if leaf.transposed else weight
        return leaf

    return jax.tree.map(inside, model, is_leaf=is_weight)


def as_stored(asked: Dense, weight: Any) -> Any:
    """The other way round: what a `Dense` would have taken, an array or a coded weight, to become this weight."""
    if not isinstance(weight, Dense):
        return weight.T if asked.transposed else weight
    return weight.array if weight.transposed == asked.transposed else weight.array.swapaxes(-1, -2)


def by_place(model: Any, is_leaf: Callable[[Any], bool] | None = is_weight) -> tuple[list[tuple[str, Any]], Any]:
    """The weights and other arrays of a model, each with its place, such as blocks[3].down; and the tree they make.

    With is_leaf None weights are taken apart into their arrays.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(model, is_leaf=is_leaf)
    return [(jax.tree_util.keystr(path).removeprefix("."), leaf) for path, leaf in leaves], tree
