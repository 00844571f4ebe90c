"""How a matrix in few bits lies in the files of others: from their tensors to the parts of a `quant.storage`.

Three layouts cover the usual formats. The names of the tensors, and in what order their numbers come, are data;
`prequantised.py` fills them in from config.json. A matrix w [o, i] has rows o, the outputs, and columns i:

    Packed   w = scale[o, g] (code[o, i] - zero[o, g])    integers of 2, 4 or 8 bits in words of 32: GPTQ
             (arXiv:2210.17323), AWQ (arXiv:2306.00978), compressed-tensors
    Tiles    w = scale[o / a, i / b] number[o, i]         bytes, fp8 or int8, a scale a tile of a x b: DeepSeek-V3
             (arXiv:2412.19437, section 3.3.2), compressed-tensors
    MXFP4    w = 2^scale[o, i / 32] number[o, i]          gpt-oss's experts (arXiv:2508.10925)

Shapes, types and the order of groups are checked when a file is opened, before anything of that size is made.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np

from ..archs.tensors import Index, Shape
from ..errors import UserError
from ..ops.formats.e8m0 import E8M0_NAN
from ..quant.storage import Blocks, Floats, Ints, Storage, packed_codes
from .safetensors import Safetensors
from .source import missing

FLOATS = ("F16", "BF16", "F32")
INT_FORMATS = {2: "int2", 4: "int4", 8: "int8"}


@dataclass(frozen=True)
class Matrix(ABC):
    """A matrix [rows, columns] of a file, or one for each of e experts, in the numbers of a storage.

    names are the tensors that are read: of codes, of scales, and what else there is. What the file's format calls
    the matrix is its transpose, [in, out], if `in_first`.
    """

    file: Safetensors
    kind: str
    names: tuple[str, ...]
    shape: Shape
    storage: Storage
    in_first: ClassVar[bool] = False

    @abstractmethod
    def parts(self) -> tuple[Callable[[Index], np.ndarray], ...]:
        """For each part of the storage what reads it: a slice for each axis of the part."""

    @cached_property
    def no_rows(self) -> list[np.ndarray]:
        """Each part of no rows, for its type and its columns."""
        index = *(slice(0, 0) for _ in self.shape[:-1]), slice(None)
        return [read(index) for read in self.parts()]

    @property
    def bits(self) -> float:
        """Of a number, scales included."""
        return 8 * sum(part.shape[-1] * part.itemsize for part in self.no_rows) / self.shape[-1]


class Layout(Protocol):
    """What every layout can do: find the matrices of a file, each by the name of the tensor whose place it takes.

    UserError if the tensors of one do not fit together.
    """

    def matrices(self, file: Safetensors) -> Mapping[str, Matrix]: ...


@dataclass(frozen=True)
class Packed:
    """Integers in words, those of the lowest bits first, with a scale and a zero point for each `group` of a row.

    codes, scales, zeros, groups  the names of tensors after that of the layer. zeros may be missing if `symmetric`,
                    and are then half the range of codes. groups may be missing too; it says of each column which
                    group it is of (GPTQ with act-order). group None is all of a row
    in_first        they lie transposed: [i, o] and [g, o]
    across          a word's codes are of several rows, and not of columns; those of zeros always are
    places          where in a word its first, second … code stands
    offset          zeros are so much more than what stands there
    """

    kind: str
    bits: int
    group: int | None
    codes: str = "qweight"
    scales: str = "scales"
    zeros: str = "qzeros"
    groups: str = "g_idx"
    in_first: bool = True
    across: bool = False
    places: tuple[int, ...] | None = None
    offset: int = 0
    symmetric: bool = False

    def matrices(self, file: Safetensors) -> Mapping[str, Matrix]:
        """LAYER.weight for every LAYER.qweight."""
        stems = [name.removesuffix(self.codes) for name in file.names() if name.endswith(f".{self.codes}")]
        return {f"{stem}weight": self.matrix(file, stem) for stem in stems}

    def matrix(self, file: Safetensors, stem: str) -> Matrix:
        """One of them."""
        codes, scales, zeros, groups = (stem + name for name in (self.codes, self.scales, self.zeros, self.groups))
        a, b = self.turned(*two_axes(file, codes))
        rows, columns = (a * self.in_a_word, b) if self.across else (a, b * self.in_a_word)
        group = min(self.group or columns, columns)
        count = -(-columns // group)
        expect(file, codes, self.turned(a, b), "I32")
        expect(file, scales, self.turned(rows, count), *FLOATS)
        names = (codes, scales)
        if has_zeros := zeros in file.names() or not self.symmetric:
            expect(file, zeros, self.turned(-(-rows // self.in_a_word), count), "I32")
            names += (zeros,)
        group_of = np.arange(columns) // group
        if groups in file.names():
            expect(file, groups, (columns,), "I32")
            names += (groups,)
            group_of = file.stored(groups)
            wrong = group_of[(group_of < 0) | (group_of >= count)]
            if wrong.size:
                raise UserError(f"{file.where}: tensor {groups} holds {wrong[0]}, expected 0 to {count - 1}")
        size, picked = even_groups(group_of, group)
        storage = Ints(INT_FORMATS[self.bits], size, affine=True)
        return PackedMatrix(file, self.kind, names, (rows, columns), storage, self, has_zeros, picked)

    @property
    def in_a_word(self) -> int:
        """How many codes."""
        return 32 // self.bits

    def turned(self, rows: Any, columns: Any) -> tuple[Any, Any]:
        """Two axes as they are in the file, or from there."""
        return (columns, rows) if self.in_first else (rows, columns)

    def spread(self, words: np.ndarray) -> np.ndarray:
        """Words [n, columns] that hold codes of several rows -> these codes [rows, columns]."""
        codes = unpacked(as_bytes(words.T), self.bits)
        if self.places:
            codes = codes.reshape(len(codes), -1, len(self.places))[..., list(self.places)]
        return codes.reshape(words.shape[1], -1).T


@dataclass(frozen=True)
class PackedMatrix(Matrix):
    """One of `Packed`; picked says of each group of the storage which of the file's it is part of."""

    layout: Packed
    has_zeros: bool
    picked: np.ndarray

    def parts(self):
        return self.codes, self.scales, self.zeros

    def read(self, name: str, rows: slice, columns: slice) -> np.ndarray:
        """A piece of a tensor as if it were not transposed."""
        array = self.file.stored(name, self.layout.turned(rows, columns))
        return array.T if self.layout.in_first else array

    def spread(self, name: str, rows: slice, columns: slice) -> np.ndarray:
        """The same of one whose words hold codes of several rows."""
        per = self.layout.in_a_word
        first, last = rows.start // per, -(-rows.stop // per)
        some = self.layout.spread(self.read(name, slice(first, last), columns))
        return some[rows.start - first * per : rows.stop - first * per]

    def codes(self, index: Index) -> np.ndarray:
        """Packed along columns, which is how a storage has them too, or spread and packed again."""
        (rows, columns), bits = index, self.layout.bits
        start, stop, _ = columns.indices(self.shape[1] * bits // 8)  # bytes
        if self.layout.across:
            return packed_codes(self.spread(self.names[0], rows, slice(start * 8 // bits, stop * 8 // bits)), bits)
        first = start // 4  # words
        some = as_bytes(self.read(self.names[0], rows, slice(first, -(-stop // 4))))
        return some[:, start - 4 * first : stop - 4 * first]

    def scales(self, index: Index) -> np.ndarray:
        """Float32 [rows, groups]."""
        rows, groups = index
        columns, picked = covering(self.picked[groups])
        return finite(self.file, self.names[1], self.read(self.names[1], rows, columns))[:, picked]

    def zeros(self, index: Index) -> np.ndarray:
        """Uint8 [rows, groups]."""
        (rows, groups), top = index, 1 << self.layout.bits
        columns, picked = covering(self.picked[groups])
        if not self.has_zeros:
            return np.full((rows.stop - rows.start, len(picked)), top // 2, np.uint8)
        stored = self.spread(self.names[2], rows, columns)
        return ((stored.astype(np.int32) + self.layout.offset) % top).astype(np.uint8)[:, picked]


@dataclass(frozen=True)
class Tiles:
    """A number a byte, and a scale for each tile of rows and columns; None is all of them.

    dtype is that of the numbers in the file. `scales` are names for the scales after that of the layer, of which a
    file uses one.
    """

    kind: str
    dtype: str
    tile: tuple[int | None, int | None]
    scales: tuple[str, ...] = ("weight_scale",)

    def matrices(self, file: Safetensors) -> Mapping[str, Matrix]:
        """The tensors of that type."""
        return {name: self.matrix(file, name) for name in file.names() if file.dtype(name) == self.dtype}

    def matrix(self, file: Safetensors, codes: str) -> Matrix:
        """One of them."""
        rows, columns = two_axes(file, codes)
        stem = codes.removesuffix("weight")
        if stem == codes:
            raise UserError(f"{file.where}: tensor {codes} is {self.dtype}, expected that of weights alone")
        scales = next((stem + name for name in self.scales if stem + name in file.names()), stem + self.scales[0])
        height, width = (min(size or n, n) for size, n in zip(self.tile, (rows, columns), strict=True))
        grid = (-(-rows // height), -(-columns // width))
        expect(file, scales, grid, *FLOATS, "F8_E8M0", loosely=True)
        size, picked = even_groups(np.arange(columns) // width, width)
        storage = Ints("int8", size) if self.dtype == "I8" else Floats("row" if size == columns else "tile")
        return TiledMatrix(file, self.kind, (codes, scales), (rows, columns), storage, grid, height, picked)


@dataclass(frozen=True)
class TiledMatrix(Matrix):
    """One of `Tiles`: how many there are, how high they are, and of which the storage's are parts along a row."""

    grid: tuple[int, int]
    height: int
    picked: np.ndarray

    def parts(self):
        return self.codes, self.scales

    def codes(self, index: Index) -> np.ndarray:
        """A byte each."""
        numbers = self.file.stored(self.names[0], index)
        return numbers if numbers.dtype == np.int8 else numbers.view(np.uint8)

    def scales(self, index: Index) -> np.ndarray:
        """Float32 [rows, tiles]."""
        name, (rows, tiles) = self.names[1], index
        high, i = covering(np.arange(rows.start, rows.stop) // self.height)
        wide, j = covering(self.picked[tiles])
        pieces = [slice(0, 1) if n == 1 else piece for piece, n in zip((high, wide), self.grid, strict=True)]
        long = iter(piece for piece, n in zip(pieces, self.grid, strict=True) if n != 1)
        shape = self.file.shape(name)  # in which axes of 1 may lack
        some = self.file.stored(name, tuple(slice(None) if n == 1 else next(long) for n in shape))
        return finite(self.file, name, some.reshape([piece.stop - piece.start for piece in pieces]))[i][:, j]


@dataclass(frozen=True)
class MXFP4:
    """Experts [e, o, i], two numbers a byte, in blocks of 16 bytes with a power of two each."""

    def matrices(self, file: Safetensors) -> Mapping[str, Matrix]:
        """NAME [e, i, o] for every NAME_blocks [e, o, i / 32, 16]."""
        stems = [name.removesuffix("_blocks") for name in file.names() if name.endswith("_blocks")]
        return {stem: self.matrix(file, f"{stem}_blocks", f"{stem}_scales") for stem in stems}

    def matrix(self, file: Safetensors, blocks: str, scales: str) -> Matrix:
        """One of them."""
        shape = file.shape(blocks)
        e, rows, n = shape[:3] if len(shape) == 4 and 0 not in shape else (1, 1, 1)
        expect(file, blocks, (e, rows, n, 16), "U8")
        expect(file, scales, (e, rows, n), "U8")
        return MXFP4Experts(file, "MXFP4", (blocks, scales), (e, rows, 32 * n), Blocks("mxfp4"))


@dataclass(frozen=True)
class MXFP4Experts(Matrix):
    """One of `MXFP4`."""

    in_first = True

    def parts(self):
        return self.codes, self.scales

    def codes(self, index: Index) -> np.ndarray:
        """The file's bytes, blocks one behind the other."""
        start, stop, _ = index[-1].indices(self.shape[2] // 2)
        first, last = start // 16, -(-stop // 16)
        blocks = self.file.stored(self.names[0], (*index[:-1], slice(first, last)))
        return blocks.reshape(*blocks.shape[:2], 16 * blocks.shape[2])[..., start - 16 * first : stop - 16 * first]

    def scales(self, index: Index) -> np.ndarray:
        """E8M0, of which one code is no number."""
        found = self.file.stored(self.names[1], index)
        if np.any(found == E8M0_NAN):
            raise UserError(f"{self.file.where}: tensor {self.names[1]} holds {E8M0_NAN}, expected 0 to 254")
        return found


def even_groups(group_of: np.ndarray, group: int) -> tuple[int, np.ndarray]:
    """Groups as storages have them, of one size and of columns side by side: the size, and what each is part of.

    They are smaller than a file's where that cuts the last one short, and of one column each in act-order.
    """
    size = math.gcd(group, len(group_of))
    runs = group_of.reshape(-1, size)
    if np.any(runs != runs[:, :1]):
        size = 1
    return size, group_of[::size]


def covering(picked: np.ndarray) -> tuple[slice, np.ndarray]:
    """What covers the places picked, and where in it they are."""
    first, last = (int(picked.min()), int(picked.max()) + 1) if picked.size else (0, 0)
    return slice(first, last), picked - first


def two_axes(file: Safetensors, name: str) -> Shape:
    """The shape of a tensor; UserError unless it is that of a matrix."""
    shape = file.shape(name)
    if len(shape) != 2 or 0 in shape:
        raise UserError(f"{file.where}: tensor {name} has shape {list(shape)}, expected that of a matrix")
    return shape


def expect(file: Safetensors, name: str, shape: Shape, *dtypes: str, loosely: bool = False) -> None:
    """UserError unless the file has a tensor of that shape, in which `loosely` axes of 1 may lack, and type."""
    if name not in file.names():
        raise missing(file.where, name)
    found, dtype = file.shape(name), file.dtype(name)
    same = [n for n in found if n != 1] == [n for n in shape if n != 1] if loosely else found == shape
    if not same or dtype not in dtypes:
        expected = f"{list(shape)} of {' or '.join(dtypes)}"
        raise UserError(f"{file.where}: tensor {name} is {list(found)} of {dtype}, expected {expected}")


def finite(file: Safetensors, name: str, scales: np.ndarray) -> np.ndarray:
    """Scales in float32; UserError if one of them is no number."""
    scales = scales.astype(np.float32)
    if not np.all(np.isfinite(scales)):
        raise UserError(f"{file.where}: tensor {name} holds NaN or infinity, expected scales")
    return scales


def as_bytes(words: np.ndarray) -> np.ndarray:
    """Words [a, n] -> their bytes [a, 4 n], lowest first."""
    return np.ascontiguousarray(words, "<i4").view(np.uint8)


def unpacked(data: np.ndarray, bits: int) -> np.ndarray:
    """Bytes [a, n] -> codes [a, 8 n / bits], those of the lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return (data[..., None] >> shifts & np.uint8((1 << bits) - 1)).reshape(len(data), -1)
