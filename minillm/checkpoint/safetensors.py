"""Hugging Face's tensor files: one `model.safetensors`, or shards listed by `model.safetensors.index.json`.

The safetensors library maps the file and checks its header; here shards are tied together and every entry
of the index is held against the shard it points to.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy, which safetensors looks up by name)
import numpy as np
from safetensors import SafetensorError, safe_open

from ..config import shown
from ..errors import UserError
from .jsonfile import read_json
from .source import Index, missing

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
LONGEST_NAME = 255  # of a tensor or a file
BYTES = {"F32": 4, "F16": 2, "BF16": 2}
CODES = BYTES | {"U8": 1, "I8": 1}  # of quantised models


class Safetensors:
    """The tensors of a checkpoint folder as a TensorSource."""

    def __init__(self, folder: Path, dtypes: Mapping[str, int] = BYTES):
        self.where = str(folder)
        self.slices = {}  # lazily read tensors by name
        if (folder / INDEX).is_file():
            self._open_shards(folder)
        elif (folder / SINGLE).is_file():
            self.slices = open_shard(folder / SINGLE)
        else:
            raise UserError(f"{folder}: has neither {SINGLE} nor {INDEX}{pickle_hint(folder)}")
        for name, tensor in self.slices.items():
            if tensor.get_dtype() not in dtypes:
                raise UserError(
                    f"{folder}: tensor {name} has dtype {tensor.get_dtype()}, expected one of {', '.join(dtypes)}"
                )

    def names(self):
        return self.slices.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> str:
        return self._slice(name).get_dtype()

    def nbytes(self, name: str) -> int:
        return math.prod(self.shape(name)) * CODES[self.dtype(name)]

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        return self.stored(name, index).astype(np.float32, copy=False)

    def stored(self, name: str, index: Index = ()) -> np.ndarray:
        """As it stands in the file."""
        return np.asarray(self._slice(name)[index or (slice(None),)])

    def _slice(self, name: str):
        if name not in self.slices:
            raise missing(self.where, name)
        return self.slices[name]

    def _open_shards(self, folder: Path) -> None:
        where = folder / INDEX
        listed = read_json(where).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
            raise UserError(f"{where}: weight_map is missing or not a map of names to file names")
        for file in sorted(set(listed.values())):
            if Path(file).name != file:
                raise UserError(f"{where}: shard {file!r} is a path, expected a file name in the same folder")
            if len(file) > LONGEST_NAME or not (folder / file).is_file():
                raise UserError(f"{where}: shard {shown(file)} is missing")
            shard = open_shard(folder / file)
            for name in shard:
                if listed.get(name, file) != file:
                    raise UserError(f"{folder / file}: holds tensor {name}, but {INDEX} says {listed[name]!r}")
            self.slices |= shard
        for name in listed:
            if name not in self.slices:
                raise UserError(f"{where}: tensor {shown(name)} is not in shard {listed[name]}")


def open_shard(path: Path) -> dict:
    """The tensors of one file, by name, not yet read."""
    try:
        shard = safe_open(path, framework="numpy")
        names = shard.keys()
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); fetch it again") from None
    for name in names:
        if not name.isprintable() or not 0 < len(name) <= LONGEST_NAME:
            raise UserError(
                f"{path}: a tensor is called {name[:40]!r}, expected 1 to {LONGEST_NAME} printable signs"
            )
    return {name: shard.get_slice(name) for name in names}


def pickle_hint(folder: Path) -> str:
    """Why a folder with only pickled weights is refused."""
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        return "; pickled weights can run code when opened and are not read, save them as safetensors"
    return ""
