"""The GGUF block layouts, one value at a time (ggml's `ggml-common.h` and `ggml-quants.c`).

Numbers of more than a byte are little-endian. Smaller ones lie in runs: a run of n bytes holds its first n numbers
in the lowest bits of its bytes, the next n in the bits above, and so on (`packed`). Below, fields are in the order
of the file, each with its bytes; (32 x 4) stands for runs of 32 bytes with numbers of 4 bits. d, dmin and m of 2
bytes are float16. i is the value, j the group that it is in.

    F32, F16, BF16   one value a block
    Q4_0    d 2, q 16 (16 x 4)                                                x = d (q - 8)
    Q4_1    d 2, m 2, q 16 (16 x 4)                                           x = d q + m
    Q5_0    d 2, high 4 (1 x 1), low 16 (16 x 4)                              x = d (q - 16), q = low + 16 high
    Q5_1    d 2, m 2, high 4 (1 x 1), low 16 (16 x 4)                         x = d q + m
    Q8_0    d 2, q 32 (int8)                                                  x = d q
    Q2_K    s, m 16 (4 bits each), q 64 (32 x 2), d 2, dmin 2, j = i / 16     x = d s q - dmin m
    Q3_K    high 32 (32 x 1), low 64 (32 x 2), s 8 (8 x 4) and 4 (4 x 2), d 2, j = i / 16
                                                                              x = d (s - 32) (low + 4 high - 4)
    Q4_K    d 2, dmin 2, s, m 12 (`six_bits`), q 128 (32 x 4), j = i / 32     x = d s q - dmin m
    Q5_K    d 2, dmin 2, s, m 12, high 32 (32 x 1), low 128 (32 x 4)          x = d s (low + 16 high) - dmin m
    Q6_K    low 128 (64 x 4), high 64 (32 x 2), s 16 (int8), d 2, j = i / 16  x = d s (low + 16 high - 32)
    TQ1_0   digits 32 and 16 (five to a byte), 4 (four to a byte), d 2        x = d (digit - 1)
    TQ2_0   q 64 (32 x 2), d 2                                                x = d (q - 1)
    IQ4_NL  d 2, q 16 (16 x 4)                                                x = d LEVELS[q]
    IQ4_XS  d 2, high 2 (1 x 2), low 4 (1 x 4), q 128 (16 x 4), j = i / 32    x = d (low + 16 high - 32) LEVELS[q]
    MXFP4   e 1, q 16 (16 x 4)                                                x = 2^(e - 127) E2M1[q]
    NVFP4   s 4 (e4m3, no sign), q 32 (8 x 4), j = i / 16                     x = s E2M1[q]

Every product fits float32 and every sum float64, since each float16 is a multiple of 2^-24: the list is exact.
"""

import struct
from collections.abc import Callable

LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def decode_gguf_block_ref(name: str, block: bytes) -> list[float]:
    """Values of one block of type `name`, exact in float64."""
    if name not in VALUES:
        raise ValueError(f"decode_gguf_block_ref: unknown type {name!r}")
    count, value = VALUES[name]
    return [value(block, i) for i in range(count)]


def half(block: bytes, at: int) -> float:
    """The float16 at a byte."""
    return struct.unpack("<e", block[at : at + 2])[0]


def int8(block: bytes, at: int) -> int:
    """The integer with a sign at a byte."""
    return struct.unpack("<b", block[at : at + 1])[0]


def packed(block: bytes, at: int, run: int, bits: int, i: int) -> int:
    """The i-th number of `bits` bits in the runs of `run` bytes that start at a byte."""
    which, i = divmod(i, run * (8 // bits))
    place, byte = divmod(i, run)
    return block[at + which * run + byte] >> (place * bits) & ((1 << bits) - 1)


def f32(block: bytes, i: int) -> float:
    """A float32."""
    return struct.unpack("<f", block)[0]


def f16(block: bytes, i: int) -> float:
    """A float16."""
    return half(block, 0)


def bf16(block: bytes, i: int) -> float:
    """The upper half of a float32."""
    return struct.unpack("<f", b"\0\0" + block)[0]


def q4_0(block: bytes, i: int) -> float:
    """Codes around 8."""
    return half(block, 0) * (packed(block, 2, 16, 4, i) - 8)


def q4_1(block: bytes, i: int) -> float:
    """Codes from a minimum up."""
    return half(block, 0) * packed(block, 4, 16, 4, i) + half(block, 2)


def q5_0(block: bytes, i: int) -> float:
    """Codes around 16, their fifth bit apart."""
    return half(block, 0) * (packed(block, 6, 16, 4, i) + 16 * packed(block, 2, 1, 1, i) - 16)


def q5_1(block: bytes, i: int) -> float:
    """Codes from a minimum up, their fifth bit apart."""
    return half(block, 0) * (packed(block, 8, 16, 4, i) + 16 * packed(block, 4, 1, 1, i)) + half(block, 2)


def q8_0(block: bytes, i: int) -> float:
    """A byte each."""
    return half(block, 0) * int8(block, 2 + i)


def q2_k(block: bytes, i: int) -> float:
    """Each group's byte holds its scale and, above it, its minimum."""
    s, m = block[i // 16] & 15, block[i // 16] >> 4
    return half(block, 80) * s * packed(block, 16, 32, 2, i) - half(block, 82) * m


def q3_k(block: bytes, i: int) -> float:
    """Codes and scales both in two parts."""
    j = i // 16
    s = packed(block, 96, 8, 4, j) + 16 * packed(block, 104, 4, 2, j) - 32
    return half(block, 108) * s * (packed(block, 32, 32, 2, i) + 4 * packed(block, 0, 32, 1, i) - 4)


def six_bits(block: bytes, j: int) -> tuple[int, int]:
    """Scale and minimum of group j in the 12 bytes from byte 4: s of groups 0 … 3 in the first four bytes, m in the
    next; of groups 4 … 7 the low four bits of both in the last, the upper two on top of the first eight.
    """
    s, m, last = block[4 + j % 4], block[8 + j % 4], block[12 + j % 4]
    if j < 4:
        return s & 63, m & 63
    return (last & 15) + 16 * (s >> 6), (last >> 4) + 16 * (m >> 6)


def q4_k(block: bytes, i: int) -> float:
    """Four bits."""
    s, m = six_bits(block, i // 32)
    return half(block, 0) * s * packed(block, 16, 32, 4, i) - half(block, 2) * m


def q5_k(block: bytes, i: int) -> float:
    """Four bits and one."""
    s, m = six_bits(block, i // 32)
    return (
        half(block, 0) * s * (packed(block, 48, 32, 4, i) + 16 * packed(block, 16, 32, 1, i)) - half(block, 2) * m
    )


def q6_k(block: bytes, i: int) -> float:
    """Four bits and two."""
    q = packed(block, 0, 64, 4, i) + 16 * packed(block, 128, 32, 2, i) - 32
    return half(block, 208) * int8(block, 192 + i // 16) * q


def tq1_0(block: bytes, i: int) -> float:
    """Digits of base 3: a byte times 3^n, less its overflow, and times 3 again, overflows by its digit n."""
    at, run, i = (0, 32, i) if i < 160 else (32, 16, i - 160) if i < 240 else (48, 4, i - 240)
    n, byte = divmod(i, run)
    digit = (block[at + byte] * 3**n % 256) * 3 // 256
    return half(block, 52) * (digit - 1)


def tq2_0(block: bytes, i: int) -> float:
    """Two bits; 3 means 2."""
    return half(block, 64) * (packed(block, 0, 32, 2, i) - 1)


def iq4_nl(block: bytes, i: int) -> float:
    """Uneven levels."""
    return half(block, 0) * LEVELS[packed(block, 2, 16, 4, i)]


def iq4_xs(block: bytes, i: int) -> float:
    """Uneven levels, with scales of 6 bits in two parts."""
    j = i // 32
    s = packed(block, 4, 1, 4, j) + 16 * packed(block, 2, 1, 2, j) - 32
    return half(block, 0) * s * LEVELS[packed(block, 8, 16, 4, i)]


def mxfp4(block: bytes, i: int) -> float:
    """A power of two times a small float."""
    return 2.0 ** (block[0] - 127) * E2M1[packed(block, 1, 16, 4, i)]


def nvfp4(block: bytes, i: int) -> float:
    """The scale has a 4-bit exponent and a 3-bit mantissa; its sign is not looked at, and 127 is 0."""
    byte = block[i // 16]
    e, m = byte >> 3 & 15, byte & 7
    s = 0.0 if byte == 127 else 2.0 ** (e - 7) * (1 + m / 8) if e else 2.0**-6 * m / 8
    return s * E2M1[packed(block, 4, 8, 4, i)]


VALUES: dict[str, tuple[int, Callable[[bytes, int], float]]] = {
    "F32": (1, f32),
    "F16": (1, f16),
    "BF16": (1, bf16),
    "Q4_0": (32, q4_0),
    "Q4_1": (32, q4_1),
    "Q5_0": (32, q5_0),
    "Q5_1": (32, q5_1),
    "Q8_0": (32, q8_0),
    "Q2_K": (256, q2_k),
    "Q3_K": (256, q3_k),
    "Q4_K": (256, q4_k),
    "Q5_K": (256, q5_k),
    "Q6_K": (256, q6_k),
    "TQ1_0": (256, tq1_0),
    "TQ2_0": (256, tq2_0),
    "IQ4_NL": (32, iq4_nl),
    "IQ4_XS": (256, iq4_xs),
    "MXFP4": (32, mxfp4),
    "NVFP4": (64, nvfp4),
}
