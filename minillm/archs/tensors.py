"""How a tensor here is made from tensors of a checkpoint: small, sliceable descriptions, kept as data.

Every description knows its shape and can read any slice of rows (and columns) without reading the rest, so no
process needs to hold a whole model to load its part. `{i}` in a name stands for the layer.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..config import Config

Index = tuple[slice, ...]


class Source(Protocol):
    """Where tensors come from; `checkpoint.source.TensorSource` is the full protocol."""

    def shape(self, name: str) -> tuple[int, ...]: ...
    def read(self, name: str, index: Index = ()) -> np.ndarray: ...


@dataclass(frozen=True)
class View:
    """A checkpoint seen from one layer of a model."""

    source: Source
    config: Config
    layer: int

    def name(self, pattern: str) -> str:
        """The checkpoint's name for this layer."""
        return pattern.format(i=self.layer)


class Entry(Protocol):
    """A description: its shape, its slices, and the checkpoint tensors it is made of, by name and shape."""

    def shape(self, view: View) -> tuple[int, ...]: ...
    def read(self, view: View, index: Index = ()) -> np.ndarray: ...
    def parts(self, view: View) -> dict[str, tuple[int, ...]]: ...


@dataclass(frozen=True)
class Tensor:
    """A tensor as it stands in the file."""

    pattern: str

    def shape(self, view: View) -> tuple[int, ...]:
        return view.source.shape(view.name(self.pattern))

    def read(self, view: View, index: Index = ()) -> np.ndarray:
        return view.source.read(view.name(self.pattern), index)

    def parts(self, view: View) -> dict[str, tuple[int, ...]]:
        return {view.name(self.pattern): self.shape(view)}


@dataclass(frozen=True)
class Stack:
    """Tensors below one another: rows of the first, then of the next."""

    entries: tuple[Any, ...]

    def shape(self, view: View) -> tuple[int, ...]:
        shapes = [part.shape(view) for part in self.entries]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def read(self, view: View, index: Index = ()) -> np.ndarray:
        rows, rest = row_range(index, self.shape(view)[0])
        pieces, first = [], 0
        for part in self.entries:
            size = part.shape(view)[0]
            low, high = max(rows.start - first, 0), min(rows.stop - first, size)
            if low < high:
                pieces.append(part.read(view, (slice(low, high), *rest)))
            first += size
        return np.concatenate(pieces)

    def parts(self, view: View) -> dict[str, tuple[int, ...]]:
        return {name: shape for entry in self.entries for name, shape in entry.parts(view).items()}


@dataclass(frozen=True)
class HalfSplit:
    """Query or key rows brought from RoPE's interleaved layout to the half-split one, head by head.

    `heads` is the Config field that counts them, `h` or `g`. Row 2j + c of a head becomes row c k/2 + j.
    """

    part: Tensor
    heads: str

    def shape(self, view: View) -> tuple[int, ...]:
        return self.part.shape(view)

    def read(self, view: View, index: Index = ()) -> np.ndarray:
        total = self.shape(view)[0]
        rows, rest = row_range(index, total)
        k = total // getattr(view.config, self.heads)
        first, last = rows.start // k, -(-rows.stop // k)  # whole heads that cover the rows
        x = self.part.read(view, (slice(first * k, last * k), *rest))
        x = x.reshape(last - first, k // 2, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
        return x[rows.start - first * k : rows.stop - first * k]

    def parts(self, view: View) -> dict[str, tuple[int, ...]]:
        return self.part.parts(view)


def row_range(index: Index, total: int) -> tuple[range, Index]:
    """The rows an index asks for, and the index of the remaining axes."""
    first, last, step = (*index, slice(None))[0].indices(total)
    if step != 1:
        raise ValueError(f"row_range: the slice has step {step}, expected 1")
    return range(first, max(first, last)), index[1:]
