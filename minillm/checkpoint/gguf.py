"""GGUF as a source of tensors: one file, or all that a large model was split into.

The parts are called NAME-00001-of-00003.gguf and so on, and say under `split.*` which part they are, of how many,
and how many tensors there are in all; the first has the metadata of the model. Any of them opens the model.
"""

import re
from pathlib import Path

import numpy as np

from ..archs.tensors import row_range
from ..config import is_whole, shown
from ..errors import UserError
from ..ops import GGUFType
from .gguf_file import Contents, Record, read_file
from .source import Index, missing

PIECE = 1 << 18  # values decoded at once: more would fall out of the cache
PART = re.compile(r"(.*)-[0-9]{5}-of-([0-9]{5})\.gguf", re.DOTALL)


class GGUF:
    """An open model: `metadata` by key, and the tensors as a TensorSource."""

    def __init__(self, path: str | Path):
        self.where = str(path)
        contents = read_file(Path(path))
        if contents.metadata.get("split.count", 0) not in (0, 1):
            contents = read_parts(Path(path), contents)
        self.metadata, self.tensors = contents

    def names(self):
        return self.tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._record(name).shape

    def dtype(self, name: str) -> str:
        return self._record(name).type.name

    def nbytes(self, name: str) -> int:
        return self._record(name).nbytes

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        shape, kind, data, offset, nbytes = self._record(name)
        *rows, last = (*index, *[slice(None)] * (len(shape) - len(index)))
        columns = row_range(last, shape[-1])
        first, end = columns.start // kind.values, -(-columns.stop // kind.values)  # whole blocks that cover them
        stored = np.frombuffer(data, np.uint8, nbytes, offset).reshape(*shape[:-1], -1, kind.size)
        some = stored[(*rows, slice(first, end))]
        numbers = decode(some.reshape(-1, kind.size), kind).reshape(*some.shape[:-2], (end - first) * kind.values)
        return numbers[..., columns.start - first * kind.values : columns.stop - first * kind.values]

    def _record(self, name: str) -> Record:
        if name not in self.tensors:
            raise missing(self.where, name)
        return self.tensors[name]


def decode(blocks: np.ndarray, kind: GGUFType) -> np.ndarray:
    """uint8 [blocks, size] -> float32 [blocks, values], a cache-sized piece at a time."""
    out = np.empty((len(blocks), kind.values), np.float32)
    step = max(PIECE // kind.values, 1)
    with np.errstate(invalid="ignore", over="ignore"):  # a damaged scale decodes to NaN, which is what it says
        for first in range(0, len(blocks), step):
            out[first : first + step] = kind.decode(blocks[first : first + step])
    return out


def read_parts(path: Path, given: Contents) -> Contents:
    """All parts of the model of which the file at `path` is one, with these contents; the first one's metadata."""
    name, count = PART.fullmatch(path.name), counted(given, "split.count", path)
    if name is None or int(name[2]) != count:
        raise UserError(f"{path}: split.count is {count}, expected a name that ends in -00001-of-{count:05}.gguf")
    whole = Contents({}, {})
    for i in range(count):
        one = path.with_name(f"{name[1]}-{i + 1:05}-of-{name[2]}.gguf")
        if not one.is_file():
            raise UserError(f"{one}: is missing; {path.name} is one of split.count = {count} files, fetch them all")
        part = given if one == path else read_file(one)
        check_part(part, i, whole, one)
        whole = Contents(whole.metadata or part.metadata, whole.tensors | part.tensors)
    total = counted(whole, "split.tensors.count", path)
    if len(whole.tensors) != total:
        raise UserError(
            f"{path}: split.tensors.count is {total}, but its {count} files hold {len(whole.tensors)} tensors; one "
            "of them is of another model"
        )
    return whole


def check_part(part: Contents, i: int, whole: Contents, path: Path) -> None:
    """UserError unless the file at `path` is part i of the model of which `whole` are those before it."""
    found = counted(part, "split.no", path)
    if found != i:
        raise UserError(f"{path}: split.no is {found}, expected {i} by its name; it is another part of a model")
    for key, found in part.metadata.items():
        first = whole.metadata.get(key, found)
        if key != "split.no" and found != first:
            other = f"{shown(first)} as in the first file; it is of another model"
            raise UserError(f"{path}: {key} is {shown(found)}, expected {other}")
    for name in part.tensors:
        if name in whole.tensors:
            raise UserError(f"{path}: tensor {name} is in one of the files before it, too")


def counted(part: Contents, key: str, path: Path) -> int:
    """A whole number of the metadata."""
    found = part.metadata.get(key)
    if found is None or not is_whole(found):
        raise UserError(f"{path}: {key} is {shown(found)}, expected a whole number")
    return found
