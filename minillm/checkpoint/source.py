"""TensorSource: tensors by name, read by slice, whatever the file behind them."""

from collections.abc import Collection
from typing import Protocol

import numpy as np

from ..errors import UserError

Index = tuple[slice, ...]


class TensorSource(Protocol):
    """An open checkpoint. Opening checks every length and offset; reading touches only the slice asked for.

    `read` gives float32 whatever the storage, `shape` is row-major ([out, in] for a matrix), `dtype` names the
    storage (`Q4_1`, `BF16` …) and `nbytes` is its size.
    """

    where: str

    def names(self) -> Collection[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def dtype(self, name: str) -> str: ...
    def nbytes(self, name: str) -> int: ...
    def read(self, name: str, index: Index = ()) -> np.ndarray: ...


def missing(where: str, name: str) -> UserError:
    """The error for a tensor that is not there."""
    return UserError(f"{where}: tensor {name} is missing; the file is incomplete or of another architecture")
