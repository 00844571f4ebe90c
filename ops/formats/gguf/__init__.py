"""GGUF tensor types: from the bytes of a file to float32 and back, many blocks at a time.

`GGUF_TYPES` is keyed by the type number written in the file; `tensor.py` is its checked front, `ref.py` the
definition of the layouts. Decoding rounds at most once, the sum with a minimum, so it equals the format's own
library bit for bit. Infinite and NaN scales decode to infinite numbers and NaN, as they do there.

Encoding gives the bytes of the `gguf` Python package for the types that it encodes. The K and IQ4 types leave
more freedom, and `search.py` uses it.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .codebook import decode_iq4_nl, decode_iq4_xs, encode_iq4_nl, encode_iq4_xs
from .float4 import decode_mxfp4, decode_nvfp4, encode_mxfp4, encode_nvfp4
from .k import decode_q2_k, decode_q3_k, decode_q4_k, decode_q5_k, decode_q6_k
from .k_encode import encode_q2_k, encode_q3_k, encode_q4_k, encode_q5_k, encode_q6_k
from .legacy import (
    decode_q4_0,
    decode_q4_1,
    decode_q5_0,
    decode_q5_1,
    decode_q8_0,
    encode_q4_0,
    encode_q4_1,
    encode_q5_0,
    encode_q5_1,
    encode_q8_0,
)
from .plain import decode_bf16, decode_f16, decode_f32, encode_bf16, encode_f16, encode_f32
from .ternary import decode_tq1_0, decode_tq2_0, encode_tq1_0, encode_tq2_0


class GGUFType(NamedTuple):
    """How one type is stored: `values` in a block of `size` bytes, and the functions between them.

    decode: uint8 [blocks, size] -> float32 [blocks, values].
    encode: float32 [blocks, values], all finite -> uint8 [blocks, size]. Where `weighs`, scales are searched for
    the least squared error, which a second argument may weigh: `importance` float32 [blocks, values], >= 0.
    Magnitudes beyond `largest` may come out infinite or cut off.
    """

    name: str
    values: int
    size: int
    decode: Callable[[np.ndarray], np.ndarray]
    encode: Callable[..., np.ndarray]
    weighs: bool = False
    largest: float = 65504.0  # of float16, which scales and minima are


GGUF_TYPES = {
    0: GGUFType("F32", 1, 4, decode_f32, encode_f32, largest=np.inf),
    1: GGUFType("F16", 1, 2, decode_f16, encode_f16),
    2: GGUFType("Q4_0", 32, 18, decode_q4_0, encode_q4_0),
    3: GGUFType("Q4_1", 32, 20, decode_q4_1, encode_q4_1),
    6: GGUFType("Q5_0", 32, 22, decode_q5_0, encode_q5_0),
    7: GGUFType("Q5_1", 32, 24, decode_q5_1, encode_q5_1),
    8: GGUFType("Q8_0", 32, 34, decode_q8_0, encode_q8_0),
    10: GGUFType("Q2_K", 256, 84, decode_q2_k, encode_q2_k, weighs=True),
    11: GGUFType("Q3_K", 256, 110, decode_q3_k, encode_q3_k, weighs=True),
    12: GGUFType("Q4_K", 256, 144, decode_q4_k, encode_q4_k, weighs=True),
    13: GGUFType("Q5_K", 256, 176, decode_q5_k, encode_q5_k, weighs=True),
    14: GGUFType("Q6_K", 256, 210, decode_q6_k, encode_q6_k, weighs=True),
    20: GGUFType("IQ4_NL", 32, 18, decode_iq4_nl, encode_iq4_nl, weighs=True),
    23: GGUFType("IQ4_XS", 256, 136, decode_iq4_xs, encode_iq4_xs, weighs=True),
    30: GGUFType("BF16", 1, 2, decode_bf16, encode_bf16, largest=float.fromhex("0x1.fep127")),
    34: GGUFType("TQ1_0", 256, 54, decode_tq1_0, encode_tq1_0),
    35: GGUFType("TQ2_0", 256, 66, decode_tq2_0, encode_tq2_0),
    39: GGUFType("MXFP4", 32, 17, decode_mxfp4, encode_mxfp4, largest=np.inf),
    40: GGUFType("NVFP4", 64, 36, decode_nvfp4, encode_nvfp4, largest=6 * 448.0),
}
