"""How a matrix is kept in few bits: from its numbers to arrays of codes and scales, and back.

A storage works on float32 [rows, columns], codes following each other along a row. Every array of its parts has a
row of its own for each of the matrix, so that rows can be taken out without decoding the others. What bits there
are is said by `ops`; storages only pack them.
"""

from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
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
    pack,
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
PER_LARGEST = np.float32(1 / FLOATS["e4m3fn"].max)


class Storage(Protocol):
    """What every storage can do; `multiple` is what the number of columns must be a multiple of."""

    @property
    def multiple(self) -> int: ...
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

    def encode(self, w: np.ndarray) -> Parts:
        """Packed codes, scales, zero points if there are any."""
        return self.packed(encode_ints_ref(w, self.format, group=self.group, affine=self.affine))

    def packed(self, coded: CodedInts) -> Parts:
        """The parts of codes found in whatever way."""
        codes = packed_codes(coded.codes, INTS[self.format].bits)
        return (codes, coded.scales) if coded.zeros is None else (codes, coded.scales, coded.zeros)

    def decode(self, parts: tuple[jax.Array, ...]) -> jax.Array:
        """As `decode_ints`."""
        bits = INTS[self.format].bits
        codes = unpack(parts[0], bits)
        zeros = parts[2] if self.affine else None
        return decode_ints(CodedInts(codes if self.affine else sign_extended(codes, bits), parts[1], zeros))


@dataclass(frozen=True)
class Floats:
    """fp8 e4m3fn with a float32 scale for each row, or one for all."""

    by_row: bool = True
    multiple: int = 1

    def encode(self, w: np.ndarray) -> Parts:
        """Codes, and the scale at which the largest magnitude is the format's, repeated for every row."""
        axis = -1 if self.by_row else None
        largest = np.max(np.abs(finite(w)), axis=axis, keepdims=True)
        scales = np.broadcast_to(largest * PER_LARGEST, (len(w), 1)).astype(np.float32)
        scaled = divided_ref(w, scales[:, 0])
        return encode_float_ref(scaled, "e4m3fn", saturate=True).astype(np.uint8), scales

    def decode(self, parts: tuple[jax.Array, ...]) -> jax.Array:
        """Numbers times their scale."""
        return decode_float(parts[0], "e4m3fn") * parts[1]


@dataclass(frozen=True)
class Blocks:
    """An MX format, or NVFP4."""

    format: str

    @property
    def multiple(self) -> int:
        """The size of a block."""
        return BLOCKS[self.format].size

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

    def decode(self, parts: tuple[jax.Array, ...]) -> jax.Array:
        """As `decode_blocks`."""
        packed, scales, *tensor_scale = parts
        elements = unpack(packed, self.bits)
        elements = elements if BLOCKS[self.format].element_format else sign_extended(elements, 8)
        return decode_blocks(CodedBlocks(elements, scales, *tensor_scale), self.format)


@dataclass(frozen=True)
class NF4:
    """Quantiles of a normal distribution, a scale for 64."""

    multiple: int = NF4_SIZE

    def encode(self, w: np.ndarray) -> Parts:
        """Packed codes, scales."""
        coded = encode_nf4_ref(w)
        return packed_codes(coded.codes, 4), coded.scales

    def decode(self, parts: tuple[jax.Array, ...]) -> jax.Array:
        """As `decode_nf4`."""
        return decode_nf4(CodedNF4(unpack(parts[0], 4), parts[1]))


@dataclass(frozen=True)
class GGUF:
    """A type of GGUF files, to the byte as it stands there."""

    type: str

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
    """Codes in bytes; negative ones by their lowest bits."""
    return np.asarray(pack(jnp.asarray(codes.view(np.uint8)), bits))


def finite(w: np.ndarray) -> np.ndarray:
    """The same numbers; ValueError if one of them is none."""
    if not np.all(np.isfinite(w)):
        raise ValueError("w holds NaN or infinity, expected finite numbers")
    return w
