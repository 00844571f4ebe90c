"""How a matrix is kept in few bits: from its numbers to arrays of codes and scales, and back.

A storage works on float32 [rows, columns], codes following each other along a row. Every array of its parts has a
row of its own for each of the matrix, so that rows can be taken out without decoding the others. What bits there
are is said by `ops`; storages only pack them.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import jax
import numpy as np

from ..ops import (
    BLOCKS,
    FLOATS,
    INTS,
    decode_blocks,
    decode_float,
    decode_gguf_blocks,
    decode_ints,
    decode_nf4,
    encode_blocks_ref,
    encode_float_ref,
    encode_gguf,
    encode_ints_ref,
    encode_nf4_ref,
    sign_extended,
    unpack,
)
from ..ops.formats.blocks_ref import Coded as CodedBlocks
from ..ops.formats.gguf.tensor import gguf_type
from ..ops.formats.integers_ref import CodedInts
from ..ops.formats.nf4 import SIZE as NF4_SIZE
from ..ops.formats.nf4 import CodedNF4
from ..ops.formats.rounding import divided_ref

Parts = tuple[np.ndarray, ...]
Reach = Literal["group", "row", "tensor"] | None
PER_LARGEST = np.float32(1 / FLOATS["e4m3fn"].max)
TILE = 128  # as in DeepSeek-V3, arXiv:2412.19437, section 3.3.2


class Storage(Protocol):
    """What every storage can do.

    multiple    what the number of columns must be a multiple of
    reach       the numbers whose least and largest decide how one of them is rounded: those of a group of columns,
                a row, or the matrix; None if it takes more than these two, or other numbers
    """

    @property
    def multiple(self) -> int: ...
    @property
    def reach(self) -> Reach: ...
    def encode(self, w: np.ndarray) -> Parts: ...
    def decode(self, parts: tuple[jax.Array, ...]) -> jax.Array: ...


@dataclass(frozen=True)
class Ints:
    """Integers with a scale for each `group` of a row (None: for all of it), and zero points if affine."""

    format: str
    group: int | None = None
    affine: bool = False

    @property
    def multiple(self) -> int:
        """Groups come out even, and so do bytes."""
        return self.group or 8 // INTS[self.format].bits

    @property
    def reach(self) -> Reach:
        """What has one scale; that of ternary codes is a mean."""
        return "group" if self.group else "row" if self.format != "ternary" else None

    def encode(self, w: np.ndarray) -> Parts:
        """Packed codes, scales, zero points if there are any."""
        return self.packed(encode_ints_ref(w, self.format, group=self.group, affine=self.affine))

    def packed(self, coded: CodedInts) -> Parts:
        """The parts of codes found in whatever way."""
        codes = packed_codes(coded.codes, INTS[self.format].bits)
        return (codes, coded.scales) if coded.zeros is None else (codes, coded.scales, coded.zeros)

    def coded(self, parts: tuple[jax.Array, ...]) -> CodedInts:
        """The codes, one a byte."""
        codes = unpacked_codes(parts[0], INTS[self.format].bits, signed=not self.affine)
        return CodedInts(codes, parts[1], parts[2] if self.affine else None)

    def decode(self, parts: tuple[jax.Array, ...]) -> jax.Array:
        """As `decode_ints`."""
        return decode_ints(self.coded(parts))


@dataclass(frozen=True)
class Floats:
    """fp8 e4m3fn with float32 scales, each for a row, for all, or for a tile of 128 x 128.

    Every row has its own copy of the scales that it shares.
    """

    scale: Literal["row", "tensor", "tile"] = "row"

    @property
    def multiple(self) -> int:
        """Tiles are whole from left to right; from top to bottom the last ones may be lower."""
        return TILE if self.scale == "tile" else 1

    @property
    def reach(self) -> Reach:
        """What has one scale; a tile is neither of a row alone nor of all."""
        return None if self.scale == "tile" else self.scale

    def encode(self, w: np.ndarray) -> Parts:
        """Codes, and the scales at which the largest magnitude is the format's."""
        tiles = np.abs(finite(w)).reshape(len(w), -1, TILE if self.scale == "tile" else w.shape[1])
        height = {"row": 1, "tensor": len(w), "tile": TILE}[self.scale]
        largest = np.maximum.reduceat(tiles.max(axis=-1), np.arange(0, len(w), height), axis=0)
        scales = np.repeat(largest * PER_LARGEST, height, axis=0)[: len(w)]
        scaled = divided_ref(w.reshape(tiles.shape), scales).reshape(w.shape)
        return encode_float_ref(scaled, "e4m3fn", saturate=True).astype(np.uint8), scales

    def decode(self, parts: tuple[jax.Array, ...]) -> jax.Array:
        """Numbers times their scale."""
        codes, scales = parts
        tiles = decode_float(codes, "e4m3fn").reshape(*scales.shape, -1)
        return (tiles * scales[..., None]).reshape(codes.shape)


@dataclass(frozen=True)
class Blocks:
    """An MX format, or NVFP4."""

    format: str

    @property
    def multiple(self) -> int:
        """The size of a block."""
        return BLOCKS[self.format].size

    @property
    def reach(self) -> Reach:
        """A block, but for the scale that NVFP4 has for all of them."""
        return "group" if BLOCKS[self.format].scale == "e8m0" else "tensor"

    @property
    def bits(self) -> int:
        """Bits of an element."""
        form = BLOCKS[self.format].element_format
        return form.bits if form else 8

    def encode(self, w: np.ndarray) -> Parts:
        """Packed elements, scales, and NVFP4's tensor scale repeated for every row."""
        coded = encode_blocks_ref(w, self.format)
        parts = packed_codes(coded.elements, self.bits), coded.scales
        return (
            parts if coded.tensor_scale is None else (*parts, np.full((len(w), 1), coded.tensor_scale, np.float32))
        )

    def coded(self, parts: tuple[jax.Array, ...]) -> CodedBlocks:
        """The elements, one a byte; of NVFP4 the tensor scale of every row."""
        packed, scales, *tensor_scale = parts
        elements = unpacked_codes(packed, self.bits, signed=BLOCKS[self.format].element_format is None)
        return CodedBlocks(elements, scales, *tensor_scale)

    def decode(self, parts: tuple[jax.Array, ...]) -> jax.Array:
        """As `decode_blocks`."""
        return decode_blocks(self.coded(parts), self.format)


@dataclass(frozen=True)
class NF4:
    """Quantiles of a normal distribution, a scale for 64."""

    multiple: int = NF4_SIZE

    @property
    def reach(self) -> Reach:
        """A block has all its scales."""
        return "group"

    def encode(self, w: np.ndarray) -> Parts:
        """Packed codes, scales."""
        coded = encode_nf4_ref(w)
        return packed_codes(coded.codes, 4), coded.scales

    def decode(self, parts: tuple[jax.Array, ...]) -> jax.Array:
        """As `decode_nf4`."""
        return decode_nf4(CodedNF4(unpacked_codes(parts[0], 4), parts[1]))


@dataclass(frozen=True)
class GGUF:
    """A type of GGUF files, to the byte as it stands there."""

    type: str

    @property
    def reach(self) -> Reach:
        """A block has all its scales."""
        return "group"

    @property
    def multiple(self) -> int:
        """The values of a block."""
        return gguf_type(self.type).values

    def encode(self, w: np.ndarray) -> Parts:
        """The bytes."""
        return (encode_gguf(w, self.type),)

    def decode(self, parts: tuple[jax.Array, ...]) -> jax.Array:
        """As `decode_gguf_blocks`."""
        return decode_gguf_blocks(parts[0], self.type)


def packed_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes in bytes as `pack` does it, without compiling for each shape; negative ones by their lowest bits."""
    if bits == 8:
        return codes
    single = np.unpackbits(codes.view(np.uint8)[..., None], axis=-1, count=bits, bitorder="little")
    return np.packbits(single.reshape(*codes.shape[:-1], codes.shape[-1] * bits), axis=-1, bitorder="little")


def unpacked_codes(data: jax.Array, bits: int, signed: bool = False) -> jax.Array:
    """Codes one a byte: uint8, or int8 if some of them may be negative."""
    if bits == 8:
        return data
    codes = unpack(data, bits)
    return sign_extended(codes, bits) if signed else codes


def finite(w: np.ndarray) -> np.ndarray:
    """The same numbers; ValueError if one of them is none."""
    if not np.all(np.isfinite(w)):
        raise ValueError("w holds NaN or infinity, expected finite numbers")
    return w
