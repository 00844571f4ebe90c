"""One file of GGUF (llama.cpp's format, versions 2 and 3): metadata, a tensor table, then the tensors' bytes.

The file is memory-mapped and never trusted: each count is held against the bytes that are left before
anything is allocated for it, and every tensor against the end of the file before any is read.
"""

import math
import mmap
import struct
from array import array
from pathlib import Path
from typing import Any, NamedTuple

from ..config import shown
from ..errors import UserError
from ..ops import GGUF_TYPES, GGUFType

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
SMALLEST = {STRING: 8} | {kind: struct.calcsize("<" + code) for kind, code in SCALARS.items()}
LONGEST_NAME = 256  # of a key or a tensor; llama.cpp itself allows tensors 63
TENSOR_RECORD = 8 + 4 + 4 + 8  # the least a tensor takes in the table: name length, rank, type, offset


class Record(NamedTuple):
    """A line of the tensor table; `shape` is row-major, `offset` counts from the start of `data`, the file."""

    shape: tuple[int, ...]
    type: GGUFType
    data: mmap.mmap | bytes
    offset: int
    nbytes: int


class Contents(NamedTuple):
    """What one file holds."""

    metadata: dict[str, Any]
    tensors: dict[str, Record]


def read_file(path: Path) -> Contents:
    """One file, whole or a part of a model."""
    try:
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: mmap of an empty file
        raise UserError(f"{path}: cannot be read as GGUF: {error}") from None
    cursor = Cursor(data, str(path))
    magic, version = cursor.take(4, "magic"), cursor.number("I", "version")
    swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
    if magic == b"GGUF" and swapped in (2, 3):
        raise UserError(
            f"{path}: is big-endian, version {swapped}, expected little-endian GGUF; turn it around with the gguf "
            f"package for Python: gguf-convert-endian {path} little"
        )
    if magic != b"GGUF" or version not in (2, 3):
        raise UserError(f"{path}: starts with {magic!r}, version {version}; expected b'GGUF', version 2 or 3")
    n_tensors = cursor.count(TENSOR_RECORD, "tensor count")
    n_entries = cursor.count(8 + 4 + 1, "metadata count")
    metadata = read_metadata(cursor, n_entries)
    return Contents(metadata, read_tensor_table(cursor, n_tensors, alignment_of(metadata, str(path))))


class Cursor:
    """A place in the file that never moves past its end."""

    def __init__(self, data: mmap.mmap | bytes, where: str):
        self.data, self.where, self.offset = data, where, 0

    def take(self, size: int, what: str) -> bytes:
        """The next `size` bytes."""
        if size > len(self.data) - self.offset:
            raise UserError(
                f"{self.where}: {what} at byte {self.offset} needs {size} bytes, but the file ends at "
                f"{len(self.data)}; it is truncated or damaged, fetch it again"
            )
        self.offset += size
        return self.data[self.offset - size : self.offset]

    def number(self, code: str, what: str) -> Any:
        """The next number, by its `struct` code."""
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]

    def count(self, each: int, what: str) -> int:
        """The next 64-bit count, of things that take at least `each` bytes."""
        found, most = self.number("Q", what), (len(self.data) - self.offset) // each
        if found > most:
            raise UserError(f"{self.where}: {what} is {found}, but the file has room for {most} at most")
        return found

    def string(self, what: str) -> str:
        """The next string."""
        raw = self.take(self.count(1, f"length of {what}"), what)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise UserError(f"{self.where}: {what} is {raw[:40]!r}, expected UTF-8") from None

    def name(self, what: str) -> str:
        """The next string, short enough and printable: fit to stand in a message."""
        found = self.string(what)
        if not found.isprintable() or not 0 < len(found) <= LONGEST_NAME:
            raise UserError(
                f"{self.where}: {what} is {found[:40]!r} ({len(found)} characters), expected 1 to {LONGEST_NAME} "
                "printable ones; the file is damaged, fetch it again"
            )
        return found

    def value(self, kind: int, what: str) -> Any:
        """The next metadata value of a kind."""
        if kind == STRING:
            return self.string(what)
        if kind in SCALARS:
            return self.number(SCALARS[kind], what)
        if kind != ARRAY:
            raise UserError(f"{self.where}: {what} has value type {kind}, expected 0 to 12")
        kind = self.number("I", what)
        if kind not in SMALLEST:
            raise UserError(f"{self.where}: {what} is an array of type {kind}, expected numbers or strings")
        size = self.count(SMALLEST[kind], f"length of {what}")
        if kind == STRING:
            return [self.string(what) for _ in range(size)]
        numbers = array("B" if SCALARS[kind] == "?" else SCALARS[kind])  # as small as in the file
        numbers.frombytes(self.take(size * SMALLEST[kind], what))
        return numbers


def read_metadata(cursor: Cursor, n_entries: int) -> dict[str, Any]:
    """The key-value pairs in front of the tensor table."""
    metadata: dict[str, Any] = {}
    for _ in range(n_entries):
        key = cursor.name("metadata key")
        if key in metadata:
            raise UserError(f"{cursor.where}: metadata key {key} is there twice")
        metadata[key] = cursor.value(cursor.number("I", key), key)
    return metadata


def read_tensor_table(cursor: Cursor, n_tensors: int, alignment: int) -> dict[str, Record]:
    """Where each tensor lies; every one of them inside the file."""
    listed = {}
    for _ in range(n_tensors):
        name = cursor.name("tensor name")
        what = f"tensor {name}"
        rank = cursor.number("I", what)
        if not 1 <= rank <= 4:
            raise UserError(f"{cursor.where}: {what} has {rank} dimensions, expected 1 to 4")
        shape = tuple(cursor.number("Q", what) for _ in range(rank))[::-1]
        kind, offset = cursor.number("I", what), cursor.number("Q", what)
        if name in listed:
            raise UserError(f"{cursor.where}: {what} is there twice")
        listed[name] = (shape, kind, offset)
    start = -(-cursor.offset // alignment) * alignment
    tensors = {name: located(cursor, name, *fields, start=start) for name, fields in listed.items()}
    end = start
    for name, record in sorted(tensors.items(), key=lambda pair: pair[1].offset):
        if record.offset < end:
            raise UserError(f"{cursor.where}: tensor {name} begins at byte {record.offset}, inside another tensor")
        end = record.offset + record.nbytes
    return tensors


def located(cursor: Cursor, name: str, shape: tuple[int, ...], kind: int, offset: int, start: int) -> Record:
    """The checked record of one tensor; `start` is where the tensors' bytes begin."""
    where = f"{cursor.where}: tensor {name}"
    if kind not in GGUF_TYPES:
        known = ", ".join(one.name for one in GGUF_TYPES.values())
        raise UserError(f"{where} has type {kind}, which is not supported; expected one of {known}")
    stored = GGUF_TYPES[kind]
    if min(shape) < 1 or shape[-1] % stored.values:
        raise UserError(
            f"{where} has shape {list(shape)}, expected rows in multiples of {stored.values} for {stored.name}"
        )
    nbytes = math.prod(shape) // stored.values * stored.size
    if start + offset + nbytes > len(cursor.data):
        raise UserError(
            f"{where} ends at byte {start + offset + nbytes}, but the file has {len(cursor.data)}; "
            "it is truncated or damaged, fetch it again"
        )
    return Record(shape, stored, cursor.data, start + offset, nbytes)


def alignment_of(metadata: dict[str, Any], where: str) -> int:
    """`general.alignment`, 32 where it is not given."""
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 8 <= alignment <= 1 << 20 or alignment % 8:
        raise UserError(f"{where}: general.alignment is {shown(alignment)}, expected a multiple of 8")
    return alignment
