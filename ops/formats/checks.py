"""What casts refuse, in words: dtypes that would be rounded before the cast, codes that are none."""

from typing import Any

import jax.numpy as jnp
import numpy as np

NARROW = (jnp.float32, jnp.bfloat16, jnp.float16)


def check_narrow(op: str, x: Any) -> None:
    """ValueError unless x is float32 or narrower: a wider number would be rounded twice."""
    if x.dtype not in NARROW:
        raise ValueError(f"{op}: x is {x.dtype}, expected float32, bfloat16 or float16")


def checked_codes(op: str, codes: Any, bits: int) -> np.ndarray:
    """Codes as int64; ValueError unless they are integers of so many bits."""
    codes = np.asarray(codes)
    if codes.dtype.kind not in "iu":
        raise ValueError(f"{op}: codes are {codes.dtype}, expected integers")
    if codes.size and not (codes.min() >= 0 and codes.max() < 1 << bits):
        raise ValueError(f"{op}: codes reach {codes.min()} … {codes.max()}, expected 0 … {(1 << bits) - 1}")
    return codes.astype(np.int64)
