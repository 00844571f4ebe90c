"""The GGUF block layouts, one value at a time (ggml's `ggml-common.h`). All numbers are little-endian.

F32, F16, BF16   one value a block
Q8_0   32 values: d f16, then 32 x int8                               x = d q
Q4_1   32 values: d f16, m f16, then 16 bytes of two 4-bit codes      x = d q + m
       byte j holds value j in its low nibble and value j + 16 in its high one
"""

import struct


def decode_gguf_block_ref(name: str, block: bytes) -> list[float]:
    """Values of one block of type `name`, exact in float64 (every product and sum here fits it)."""
    if name == "F32":
        return [struct.unpack("<f", block)[0]]
    if name == "F16":
        return [struct.unpack("<e", block)[0]]
    if name == "BF16":  # the upper half of a float32
        return [struct.unpack("<f", b"\0\0" + block)[0]]
    if name == "Q8_0":
        (d,) = struct.unpack("<e", block[:2])
        return [d * q for q in struct.unpack("<32b", block[2:])]
    if name == "Q4_1":
        d, m = struct.unpack("<ee", block[:4])
        codes = [byte & 15 for byte in block[4:]] + [byte >> 4 for byte in block[4:]]
        return [d * q + m for q in codes]
    raise ValueError(f"decode_gguf_block_ref: unknown type {name!r}")
