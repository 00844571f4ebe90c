"""How a parameter here is made from tensors of a checkpoint: small descriptions, kept as data.

Every description knows the shape of what it gives, reads any slice of it without reading the rest, so that no
process needs to hold a whole model to load its part, and can be turned around to write a checkpoint. In a
tensor's name `{i}` stands for the layer and `{e}` for the expert.
"""

from collections.abc import Collection
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
        return pattern.format(i=self.layer, e=self.expert)

    def size(self, letter: str) -> int:
        """The size of that letter in this layer: `h` query heads, `e` experts …"""
        assert self.layer is not None
        return next(getattr(spec, letter) for spec in self.config.layers[self.layer] if hasattr(spec, letter))


class Entry(Protocol):
    """A description.

    names   the tensors it is made of
    shape   of what it gives
    read    what it gives, or a slice of that
    write   the tensors for a given array, by name; `shapes` are those of the tensors it is stacked from
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
        ends = np.cumsum([shape[self.axis] for shape in shapes])
        pieces = zip(self.entries, np.split(array, ends[:-1], axis=self.axis), shapes, strict=True)
        return {k: v for entry, piece, shape in pieces for k, v in entry.write(view, piece, shape).items()}


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

    `heads` is the letter that counts them, `h` or `g`. Row 2j + c of a head becomes row c k/2 + j.
    """

    heads: str

    def read(self, view: View, index: Index = ()) -> np.ndarray:
        total, rest = self.shape(view)[0], index[1:]
        rows = row_range((*index, slice(None))[0], total)
        k = total // view.size(self.heads)
        first, last = rows.start // k, -(-rows.stop // k)  # whole heads that cover the rows
        x = self.entry.read(view, (slice(first * k, last * k), *rest))
        x = x.reshape(last - first, k // 2, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
        return x[rows.start - first * k : rows.stop - first * k]

    def write(self, view: View, array: np.ndarray, *shapes: Shape) -> dict[str, np.ndarray]:
        heads = array.reshape(view.size(self.heads), 2, -1, *array.shape[1:])
        return self.entry.write(view, heads.swapaxes(1, 2).reshape(array.shape), *shapes)


@dataclass(frozen=True)
class Transposed(Changed):
    """A matrix that the file has as [in, out]."""

    def shape(self, view: View) -> Shape:
        return self.entry.shape(view)[::-1]

    def read(self, view: View, index: Index = ()) -> np.ndarray:
        index = (*index, slice(None), slice(None))[:2]
        return self.entry.read(view, index[::-1]).T

    def write(self, view: View, array: np.ndarray, *shapes: Shape) -> dict[str, np.ndarray]:
        return self.entry.write(view, array.T, *(shape[::-1] for shape in shapes))


@dataclass(frozen=True)
class Plus(Changed):
    """A tensor to which a constant is added: norms that are stored as their difference from one."""

    constant: float

    def read(self, view: View, index: Index = ()) -> np.ndarray:
        return self.entry.read(view, index) + np.float32(self.constant)

    def write(self, view: View, array: np.ndarray, *shapes: Shape) -> dict[str, np.ndarray]:
        return self.entry.write(view, array - np.float32(self.constant), *shapes)


@dataclass(frozen=True)
class Experts(Changed):
    """The same entry of every expert, one beside the other in a first dimension `e`."""

    def experts(self, view: View) -> list[View]:
        return [replace(view, expert=e) for e in range(view.size("e"))]

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


def row_range(rows: slice, total: int) -> range:
    """The rows that a slice of `total` asks for; ValueError if it skips some."""
    first, last, step = rows.indices(total)
    if step != 1:
        raise ValueError(f"row_range: the slice has step {step}, expected 1")
    return range(first, max(first, last))
