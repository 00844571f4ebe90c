"""E8M0: a power of two in a byte, 2^(code - 127); 255 is NaN (OCP Microscaling Formats 1.0, section 5.4.1).

There is no sign and no zero: what is no positive finite number becomes NaN. What is too small becomes 2^-127.
Between two powers, `nearest` decides at 1.5 times the lower one, which itself goes up; `floor` and `ceil` take one
side.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from ..shapes import shaped
from .checks import check_narrow, checked_codes
from .floats import as_integer

E8M0_NAN = 255
Side = Literal["nearest", "floor", "ceil"]
BEYOND = {"nearest": 1.5, "floor": 2.0, "ceil": 1 + 2.0**-23}  # from how many times the lower power on x goes up


def beyond(side: str) -> float:
    """Its entry in BEYOND; ValueError lists them."""
    if side not in BEYOND:
        raise ValueError(f"side is {side!r}, expected one of {', '.join(BEYOND)}")
    return BEYOND[side]


def encode_e8m0_ref(x: np.ndarray, side: Side = "nearest") -> np.ndarray:
    """uint8 codes of float32 or narrower numbers x [...]."""
    from_here = beyond(side)
    x = np.asarray(x, np.float32).astype(np.float64)
    good = (x > 0) & np.isfinite(x)
    fraction, above = np.frexp(np.where(good, x, 1.0))  # x = fraction * 2^above, fraction from 1/2 to 1
    exponent = above - 1 + (2 * fraction >= from_here)
    codes = np.clip(exponent + 127, 0, 255)  # above 2^127 there is NaN alone
    return np.where(good, codes, E8M0_NAN).astype(np.uint8)


def decode_e8m0_ref(codes: np.ndarray) -> np.ndarray:
    """Float64 numbers of uint8 codes [...]."""
    codes = checked_codes("decode_e8m0_ref", codes, 8)
    return np.where(codes == E8M0_NAN, np.nan, np.ldexp(1.0, codes - 127))


@shaped("x: ... float")
def encode_e8m0(x: jax.Array, side: Side = "nearest") -> jax.Array:
    """As `encode_e8m0_ref`."""
    from_here = np.uint32(beyond(side) * 2**23)
    check_narrow("encode_e8m0", x)
    x = x.astype(jnp.float32)
    whole, power = as_integer(x)
    codes = jnp.clip(power + (whole >= from_here).astype(jnp.int32) + 127, 0, 255)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    good = (bits > 0) & (bits < 0x7F800000)  # positive, finite; a comparison might take a subnormal for zero
    return jnp.where(good, codes, E8M0_NAN).astype(jnp.uint8)


@shaped("codes: ... int")
def decode_e8m0(codes: jax.Array) -> jax.Array:
    """Float32 numbers of uint8 codes [...]; that of code 0, 2^-127, is subnormal, which some devices take for 0."""
    if codes.dtype != jnp.uint8:
        raise ValueError(f"decode_e8m0: codes are {codes.dtype}, expected uint8")
    bits = jnp.where(codes == 0, jnp.uint32(1 << 22), codes.astype(jnp.uint32) << 23)
    bits = jnp.where(codes == E8M0_NAN, jnp.uint32(0x7FC00000), bits)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
