"""How a parameter here is made from tensors of a checkpoint: small descriptions, kept as data.

Every description knows the shape of what it gives, reads any slice of it without reading the rest, so that no
process needs to hold a whole model to load its part, and can be turned around to write a checkpoint. In a
tensor's name `{i}` stands for the layer and `{e}` for the expert; what stands in [] may be missing.
"""

import math
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from ..config import Config

Index = tuple[slice, ...]
Shape = tuple[int, ...]


class Source(Protocol):
    """Where tensors come from; `checkpoint.source.TensorSource` is the full protocol."""

    def names(self) -> Collection[str]: ...
    def shape(self, name: str) -> Shape: ...
    def read(self, name: str, index: Index = ()) -> np.ndarray: ...


@dataclass(frozen=True)
class View:
    """A checkpoint seen from one layer of a model, or from one expert of it."""

    source: Source
    config: Config
    layer: int | None
    expert: int = 0

    def name(self, pattern: str) -> str:
        """The checkpoint's name for this layer and expert."""
        name = pattern.format(i=self.layer, e=self.expert)
        short, whole = re.sub(r"\[.*?\]", "", name), re.sub(r"[\[\]]", "", name)
        return short if short in self.source.names() else whole

    def size(self, letter: str) -> int:
        """The size of that letter in this layer: `h` query heads, `e` experts …"""
        assert self.layer is not None
        return next(getattr(spec, letter) for spec in self.config.layers[self.layer] if hasattr(spec, letter))


class Entry(Protocol):
    """A description.

    names   the tensors it is made of
    shape   of what it gives
    read    what it gives, or a slice of that
    write   the tensors for a given array, by name; `shapes` are those of the tensors it is stacked from, or one
            shape for all of it if they are equally large
    """

    def names(self, view: View) -> list[str]: ...
    def shape(self, view: View) -> Shape: ...
    def read(self, view: View, index: Index = ()) -> np.ndarray: ...
    def write(self, view: View, array: np.ndarray, *shapes: Shape) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class Tensor:
    """A tensor as it stands in the file."""

    pattern: str

    def names(self, view: View) -> list[str]:
        return [view.name(self.pattern)]

    def shape(self, view: View) -> Shape:
        return view.source.shape(view.name(self.pattern))

    def read(self, view: View, index: Index = ()) -> np.ndarray:
        return view.source.read(view.name(self.pattern), index)

    def write(self, view: View, array: np.ndarray, *shapes: Shape) -> dict[str, np.ndarray]:
        return {view.name(self.pattern): array}


@dataclass(frozen=True)
class Stack:
    """Tensors behind one another along an axis: rows of the first, then of the next."""

    entries: tuple[Entry, ...]
    axis: int = 0

    def names(self, view: View) -> list[str]:
        return [name for entry in self.entries for name in entry.names(view)]

    def shape(self, view: View) -> Shape:
        shapes = [entry.shape(view) for entry in self.entries]
        total = sum(shape[self.axis] for shape in shapes)
        return tuple(total if axis == self.axis else size for axis, size in enumerate(shapes[0]))

    def read(self, view: View, index: Index = ()) -> np.ndarray:
        index = (*index, *[slice(None)] * (self.axis + 1 - len(index)))
        rows, pieces, first = row_range(index[self.axis], self.shape(view)[self.axis]), [], 0
        for entry in self.entries:
            size = entry.shape(view)[self.axis]
            low, high = max(rows.start - first, 0), min(rows.stop - first, size)
            if low < high:
                pieces.append(entry.read(view, (*index[: self.axis], slice(low, high), *index[self.axis + 1 :])))
            first += size
        return np.concatenate(pieces, axis=self.axis)

    def write(self, view: View, array: np.ndarray, *shapes: Shape) -> dict[str, np.ndarray]:
        ends = np.cumsum([shape[self.axis] for shape in shapes])[:-1]
        pieces = np.split(array, ends if len(shapes) > 1 else len(self.entries), axis=self.axis)
        written = (e.write(view, piece, piece.shape) for e, piece in zip(self.entries, pieces, strict=True))
        return {name: tensor for tensors in written for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Changed:
    """An entry of which something is changed, by default not its shape."""

    entry: Entry

    def names(self, view: View) -> list[str]:
        return self.entry.names(view)

    def shape(self, view: View) -> Shape:
        return self.entry.shape(view)


@dataclass(frozen=True)
class HalfSplit(Changed):
    """Query or key rows, or their biases, from RoPE's interleaved layout to the half-split one, head by head.

    `heads` is the letter that counts them, `h` or `g`. Row 2j + c of a head becomes row c k/2 + j. `turned` is the
    letter of how many of a head's rows that concerns, the last ones; by default all.
    """

    heads: str
    turned: str | None = None

    def read(self, view: View, index: Index = ()) -> np.ndarray:
        total, rest = self.shape(view)[0], index[1:]
        rows = row_range((*index, slice(None))[0], total)
        k = total // view.size(self.heads)
        first, last = rows.start // k, -(-rows.stop // k)  # whole heads that cover the rows
        x = self.entry.read(view, (slice(first * k, last * k), *rest))
        x = self.with_pairs(view, x.reshape(last - first, k, *x.shape[1:]), split=True).reshape(x.shape)
        return x[rows.start - first * k : rows.stop - first * k]

    def write(self, view: View, array: np.ndarray, *shapes: Shape) -> dict[str, np.ndarray]:
        heads = array.reshape(view.size(self.heads), -1, *array.shape[1:])
        return self.entry.write(view, self.with_pairs(view, heads, split=False).reshape(array.shape), *shapes)

    def with_pairs(self, view: View, heads: np.ndarray, split: bool) -> np.ndarray:
        """heads [h k …] with the two rows of each pair split, or side by side again."""
        count, k, *rest = heads.shape
        turned = view.size(self.turned) if self.turned else k
        plain, pairs = np.split(heads, [k - turned], axis=1)
        pairs = pairs.reshape(count, *((turned // 2, 2) if split else (2, turned // 2)), *rest).swapaxes(1, 2)
        return np.concatenate([plain, pairs.reshape(count, turned, *rest)], axis=1)


@dataclass(frozen=True)
class ByPart(Changed):
    """Rows that come head by head, each head with all its parts, put in order part by part.

    `heads` is the letter that counts heads, `parts` the sizes of one head's parts as products of letters: with
    heads "g" and parts ("k", "r j") rows k_1 v_1 k_2 v_2 … become k_1 k_2 … v_1 v_2 …. No letters are one row;
    axis is that of the rows.
    """

    heads: str
    parts: tuple[str, ...]
    axis: int = 0

    def order(self, view: View) -> np.ndarray:
        """For each row of what this gives, where it stands in the file."""
        sizes = [math.prod(view.size(letter) for letter in part.split()) for part in self.parts]
        rows = np.arange(view.size(self.heads) * sum(sizes)).reshape(-1, sum(sizes))
        return np.concatenate([part.ravel() for part in np.split(rows, np.cumsum(sizes)[:-1], axis=1)])

    def read(self, view: View, index: Index = ()) -> np.ndarray:
        index = (*index, *[slice(None)] * (self.axis + 1 - len(index)))
        order = self.order(view)
        rows = order[index[self.axis]]
        first, last = rows.min(initial=len(order)), rows.max(initial=-1) + 1
        x = self.entry.read(view, (*index[: self.axis], slice(first, last), *index[self.axis + 1 :]))
        return np.take(x, rows - first, axis=self.axis)

    def write(self, view: View, array: np.ndarray, *shapes: Shape) -> dict[str, np.ndarray]:
        return self.entry.write(view, np.take(array, np.argsort(self.order(view)), axis=self.axis), *shapes)


@dataclass(frozen=True)
class Transposed(Changed):
    """A matrix that the file has as [in, out], or several such matrices."""

    def shape(self, view: View) -> Shape:
        return last_two_swapped(self.entry.shape(view))

    def read(self, view: View, index: Index = ()) -> np.ndarray:
        index = (*index, *[slice(None)] * (len(self.shape(view)) - len(index)))
        return self.entry.read(view, last_two_swapped(index)).swapaxes(-1, -2)

    def write(self, view: View, array: np.ndarray, *shapes: Shape) -> dict[str, np.ndarray]:
        return self.entry.write(view, array.swapaxes(-1, -2), *(last_two_swapped(shape) for shape in shapes))


@dataclass(frozen=True)
class Flat(Changed):
    """Rows one below the other that the file has apart for each of `heads`, a letter: [h, x, …]."""

    heads: str

    def shape(self, view: View) -> Shape:
        shape = self.entry.shape(view)
        return (math.prod(shape[:2]), *shape[2:])

    def read(self, view: View, index: Index = ()) -> np.ndarray:
        k, total = self.entry.shape(view)[1], self.shape(view)[0]
        rows = row_range((*index, slice(None))[0], total)
        first, last = rows.start // k, -(-rows.stop // k)
        x = self.entry.read(view, (slice(first, last), slice(None), *index[1:]))
        return x.reshape(-1, *x.shape[2:])[rows.start - first * k : rows.stop - first * k]

    def write(self, view: View, array: np.ndarray, *shapes: Shape) -> dict[str, np.ndarray]:
        return self.entry.write(view, array.reshape(view.size(self.heads), -1, *array.shape[1:]), *shapes)


@dataclass(frozen=True)
class OneRow(Changed):
    """A matrix of one row, which some files have as a vector."""

    def shape(self, view: View) -> Shape:
        return (1, self.entry.shape(view)[-1])

    def read(self, view: View, index: Index = ()) -> np.ndarray:
        return self.entry.read(view).reshape(1, -1)[index]

    def write(self, view: View, array: np.ndarray, *shapes: Shape) -> dict[str, np.ndarray]:
        return self.entry.write(view, array, *shapes)


@dataclass(frozen=True)
class Plus(Changed):
    """A tensor to which a constant is added: norms that are stored as their difference from one."""

    constant: float

    def read(self, view: View, index: Index = ()) -> np.ndarray:
        return self.entry.read(view, index) + np.float32(self.constant)

    def write(self, view: View, array: np.ndarray, *shapes: Shape) -> dict[str, np.ndarray]:
        return self.entry.write(view, array - np.float32(self.constant), *shapes)


@dataclass(frozen=True)
class LogOfNegative(Changed):
    """log(-A): the decay rates of a recurrence, which the file has as A."""

    def read(self, view: View, index: Index = ()) -> np.ndarray:
        return np.log(-self.entry.read(view, index))

    def write(self, view: View, array: np.ndarray, *shapes: Shape) -> dict[str, np.ndarray]:
        return self.entry.write(view, -np.exp(array), *shapes)


@dataclass(frozen=True)
class Experts(Changed):
    """The same entry of every expert, one beside the other in a first dimension `e`."""

    def experts(self, view: View) -> Iterator[View]:
        return (replace(view, expert=e) for e in range(view.size("e")))  # a config may say billions

    def names(self, view: View) -> list[str]:
        return [name for one in self.experts(view) for name in self.entry.names(one)]

    def shape(self, view: View) -> Shape:
        shapes = {self.entry.shape(one) for one in self.experts(view)}
        return (view.size("e"), *max(shapes)) if len(shapes) == 1 else ()

    def read(self, view: View, index: Index = ()) -> np.ndarray:
        chosen = row_range((*index, slice(None))[0], view.size("e"))
        return np.stack([self.entry.read(replace(view, expert=e), index[1:]) for e in chosen])

    def write(self, view: View, array: np.ndarray, *shapes: Shape) -> dict[str, np.ndarray]:
        inner = [shape[1:] for shape in shapes]
        written = (self.entry.write(one, array[one.expert], *inner) for one in self.experts(view))
        return {name: piece for tensors in written for name, piece in tensors.items()}


def last_two_swapped(sizes: tuple) -> tuple:
    """(…, a, b) -> (…, b, a)."""
    return sizes[:-2] + sizes[:-3:-1]


def row_range(rows: slice, total: int) -> range:
    """The rows that a slice of `total` asks for; ValueError if it skips some."""
    first, last, step = rows.indices(total)
    if step != 1:
        raise ValueError(f"row_range: the slice has step {step}, expected 1")
    return range(first, max(first, last))
