"""Hugging Face's tensor files: one `model.safetensors`, or shards listed by `model.safetensors.index.json`.

A file is the length of its header, the header, which is JSON and says of every tensor what it is and where, and the
tensors' bytes. It is memory-mapped and never trusted: tensors have to lie one behind the other from the header to
the end of the file, and every entry of the index is held against the shard it points to. The format's own library
writes these files, but does not read them here: it gives NumPy no 8-bit floats, and takes one of two tensors of the
same name in silence (as of 0.8).
"""

import math
import mmap
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ..config import is_whole, shown
from ..errors import UserError
from .jsonfile import LARGEST, LONGEST_NAME, parse_json, read_json
from .source import Index, missing

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
MOST_AXES = 8
MOST_VALUES = 1 << 60  # what NumPy can count in bytes, if some of the sizes are 0
PICKLED = (".bin", ".pt", ".pth", ".ckpt")

DTYPES = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F64": np.dtype("<f8"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "BOOL": np.dtype("?"),
}
FLOATS = ("F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
CODES = (*FLOATS, "U8", "I8")  # of quantised models
WORDS = (*CODES, "F8_E8M0", "I32", "I64")  # of those that others quantised


class Record(NamedTuple):
    """One tensor of a header; `offset` counts from the start of the file, which is `data`."""

    dtype: str
    shape: tuple[int, ...]
    data: mmap.mmap
    offset: int
    nbytes: int


class Safetensors:
    """The tensors of a checkpoint folder as a TensorSource; UserError if one has none of these dtypes."""

    def __init__(self, folder: Path, dtypes: Collection[str] = FLOATS):
        self.where = str(folder)
        if (folder / INDEX).is_file():
            self.tensors = read_shards(folder)
        elif (folder / SINGLE).is_file():
            self.tensors = read_header(folder / SINGLE)
        else:
            raise UserError(f"{folder}: has neither {SINGLE} nor {INDEX}{pickle_hint(folder)}")
        for name, record in self.tensors.items():
            if record.dtype not in dtypes:
                expected = ", ".join(dtypes)
                raise UserError(f"{folder}: tensor {name} has dtype {record.dtype}, expected one of {expected}")

    def names(self):
        return self.tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._record(name).shape

    def dtype(self, name: str) -> str:
        return self._record(name).dtype

    def nbytes(self, name: str) -> int:
        return self._record(name).nbytes

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        return self._mapped(name)[index].astype(np.float32)

    def stored(self, name: str, index: Index = ()) -> np.ndarray:
        """As it stands in the file."""
        return self._mapped(name)[index].copy()

    def _mapped(self, name: str) -> np.ndarray:
        dtype, shape, data, offset, _ = self._record(name)
        return np.frombuffer(data, DTYPES[dtype], math.prod(shape), offset).reshape(shape)

    def _record(self, name: str) -> Record:
        if name not in self.tensors:
            raise missing(self.where, name)
        return self.tensors[name]


def read_shards(folder: Path) -> dict[str, Record]:
    """The tensors of all files that the index lists; every one has to be where the index says."""
    where = folder / INDEX
    listed = read_json(where).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
        raise UserError(f"{where}: weight_map is missing or not a map of names to file names")
    tensors: dict[str, Record] = {}
    for file in sorted(set(listed.values())):
        if Path(file).name != file:
            raise UserError(f"{where}: shard {shown(file)} is a path, expected a file name in the same folder")
        if not file.endswith(".safetensors"):
            raise UserError(f"{where}: shard {shown(file)} is no safetensors file{pickle_hint(folder)}")
        if len(file) > LONGEST_NAME or not (folder / file).is_file():
            raise UserError(f"{where}: shard {shown(file)} is missing")
        shard = read_header(folder / file)
        for name in shard:
            if listed.get(name, file) != file:
                raise UserError(f"{folder / file}: holds tensor {name}, but {INDEX} says {shown(listed[name])}")
            if name in tensors:  # the index lists it nowhere
                raise UserError(f"{folder / file}: holds tensor {name}, and so does another shard of {INDEX}")
        tensors |= shard
    for name in listed:
        if name not in tensors:
            raise UserError(f"{where}: tensor {shown(name)} is not in shard {shown(listed[name])}")
    return tensors


def read_header(path: Path) -> dict[str, Record]:
    """The tensors of one file, by name."""
    try:
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: mmap of an empty file
        raise UserError(f"{path}: cannot be read as safetensors: {error}") from None
    size, most = int.from_bytes(data[:8], "little"), min(len(data) - 8, LARGEST)
    if not 2 <= size <= most:
        raise UserError(
            f"{path}: header length is {size}, expected 2 to {most}; it is truncated or damaged, fetch it again"
        )
    listed = parse_json(data[8 : 8 + size], f"{path}: header")
    listed.pop("__metadata__", None)
    tensors = {name: checked(name, entry, data, 8 + size, f"{path}") for name, entry in listed.items()}
    end = 8 + size
    for name, record in sorted(tensors.items(), key=lambda pair: (pair[1].offset, pair[1].nbytes)):
        if record.offset != end:
            expected = f"{end}, where the one before ends; the file is damaged, fetch it again"
            raise UserError(f"{path}: tensor {name} begins at byte {record.offset}, expected {expected}")
        end += record.nbytes
    if end != len(data):
        raise UserError(f"{path}: its last tensor ends at byte {end}, but the file has {len(data)}; fetch it again")
    return tensors


def checked(name: str, entry: Any, data: mmap.mmap, start: int, where: str) -> Record:
    """The record of one tensor, which lies inside the file; `start` is where the tensors' bytes begin."""
    where = f"{where}: tensor {name}"
    entry = entry if isinstance(entry, dict) else {}
    dtype, shape, place = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise UserError(f"{where} has dtype {shown(dtype)}, expected one of {', '.join(DTYPES)}")
    if not is_sizes(shape) or len(shape) > MOST_AXES or math.prod(n for n in shape if n) > MOST_VALUES:
        expected = f"up to {MOST_AXES} whole numbers, of a file that can be"
        raise UserError(f"{where} has shape {shown(shape)}, expected {expected}")
    if not is_sizes(place) or len(place) != 2:
        raise UserError(f"{where} has data_offsets {shown(place)}, expected two whole numbers")
    nbytes, room = math.prod(shape) * DTYPES[dtype].itemsize, len(data) - start
    if place[1] - place[0] != nbytes or place[1] > room:
        expected = f"{nbytes} bytes for shape {shown(shape)} of {dtype}, inside the {room} that the file has"
        raise UserError(f"{where} has data_offsets {shown(place)}, expected {expected}; fetch the file again")
    return Record(dtype, tuple(shape), data, start + place[0], nbytes)


def is_sizes(value: Any) -> bool:
    """Whether value is a list of whole numbers from 0 on."""
    return isinstance(value, list) and all(is_whole(one) and one >= 0 for one in value)


def pickle_hint(folder: Path) -> str:
    """Why pickled weights, if there are any in a folder, are not read, and how to convert them; or nothing."""
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLED)
    if not pickled:
        return ""
    line = f"M.from_pretrained({str(folder)!r}).save_pretrained({f'{folder}-safetensors'!r})"
    return (
        f"; {pickled[0]} is a pickle, which can run code when it is opened, and is not read; if you trust it, save "
        f'it anew: python -c "from transformers import AutoModelForCausalLM as M; {line}"'
    )
