"""Small floating-point formats, by definition: what a code means, and which code a number gets.

A code is a sign bit, e exponent bits and m mantissa bits. With exponent field E and mantissa field M it means

    (-1)^sign 2^(E - bias) (1 + M / 2^m)    or, where E = 0,    (-1)^sign 2^(1 - bias) M / 2^m

Formats differ in their top codes: `ieee` has infinities and NaNs where E is all ones; `nan` only takes its very
largest magnitude for NaN; `finite` has numbers alone. Sources: OCP 8-bit Floating Point Specification 1.0 (e4m3fn,
e5m2), OCP Microscaling Formats 1.0 (fp6, fp4, e8m0), IEEE 754-2019 (fp16, and its rules for e4m3 and e3m4).

Magnitudes grow with their codes, which is what makes rounding simple: the candidates are neighbouring codes.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from .checks import checked_codes

Rounding = Literal["nearest", "toward zero", "stochastic"]
RANDOM_BITS = 24  # that stochastic rounding compares with


@dataclass(frozen=True)
class FloatFormat:
    """e exponent bits, m mantissa bits, what is taken off the exponent, and what the top codes are."""

    name: str
    e: int
    m: int
    bias: int
    top: Literal["ieee", "nan", "finite"]

    @property
    def bits(self) -> int:
        """Bits of a code, its sign included."""
        return 1 + self.e + self.m

    @property
    def largest(self) -> int:
        """The code of the largest finite magnitude."""
        ones = (1 << (self.e + self.m)) - 1
        return {"ieee": ones - (1 << self.m), "nan": ones - 1, "finite": ones}[self.top]

    @property
    def infinity(self) -> int | None:
        """The code of infinity, if there is one."""
        return self.largest + 1 if self.top == "ieee" else None

    @property
    def nan(self) -> int | None:
        """The code that NaN gets: of several the one with the first mantissa bit set alone."""
        if self.top == "finite":
            return None
        return self.largest + 1 if self.top == "nan" else self.largest + 1 + (1 << (self.m - 1))

    @property
    def max(self) -> float:
        """The largest finite number."""
        return float(magnitudes(self, np.array([self.largest]))[0])


FLOATS = {
    one.name: one
    for one in (
        FloatFormat("bf16", 8, 7, 127, "ieee"),
        FloatFormat("fp16", 5, 10, 15, "ieee"),
        FloatFormat("e5m2", 5, 2, 15, "ieee"),
        FloatFormat("e4m3", 4, 3, 7, "ieee"),
        FloatFormat("e3m4", 3, 4, 3, "ieee"),
        FloatFormat("e4m3fn", 4, 3, 7, "nan"),
        FloatFormat("e3m2", 3, 2, 3, "finite"),
        FloatFormat("e2m3", 2, 3, 1, "finite"),
        FloatFormat("e2m1", 2, 1, 1, "finite"),
    )
}


def float_format(name: str) -> FloatFormat:
    """A format by name; ValueError lists those there are."""
    if name not in FLOATS:
        raise ValueError(f"format is {name!r}, expected one of {', '.join(FLOATS)}")
    return FLOATS[name]


def magnitudes(form: FloatFormat, codes: np.ndarray) -> np.ndarray:
    """Float64 magnitudes of codes without a sign, by the formula above, whatever the top codes stand for."""
    exponent, mantissa = codes >> form.m, codes & ((1 << form.m) - 1)
    whole = np.where(exponent > 0, 1 << form.m, 0) + mantissa
    return np.ldexp(whole.astype(np.float64), np.maximum(exponent, 1) - form.bias - form.m)


def decode_float_ref(codes: np.ndarray, format: str) -> np.ndarray:
    """Float64 numbers of codes; ValueError unless they are integers with no more bits than the format."""
    form = float_format(format)
    codes = checked_codes("decode_float_ref", codes, form.bits)
    unsigned = codes & ((1 << (form.bits - 1)) - 1)
    x = magnitudes(form, unsigned)
    x = np.where(unsigned > form.largest, np.nan, x)
    if form.infinity is not None:
        x = np.where(unsigned == form.infinity, np.inf, x)
    return np.where(codes >> (form.bits - 1) == 1, -x, x)


def random_bits(op: str, random: Any, shape: tuple[int, ...]) -> Any:
    """The random numbers; ValueError if there are none, or none that were meant."""
    if random is None or random.dtype != np.uint32 or random.shape != shape:
        found = "missing" if random is None else f"{random.dtype} of shape {list(random.shape)}"
        wanted = f"uint32 of the shape of x, {list(shape)}, for stochastic rounding"
        raise ValueError(f"{op}: random is {found}, expected {wanted}")
    return random


def check_rounding(op: str, rounding: str) -> None:
    """ValueError unless it is one of the three."""
    if rounding not in get_args(Rounding):
        raise ValueError(f"{op}: rounding is {rounding!r}, expected one of {', '.join(get_args(Rounding))}")


def encode_float_ref(
    x: np.ndarray,
    format: str,
    *,
    rounding: Rounding = "nearest",
    saturate: bool = False,
    random: np.ndarray | None = None,
) -> np.ndarray:
    """uint16 codes of numbers x [...].

    `nearest` takes the nearest number of the format, of two as near the one with an even code; `toward zero` the
    nearest that is no larger in magnitude; `stochastic` the larger neighbour with the probability of how far x is
    on the way to it, in steps of 2^-24: if that and the upper 24 bits of `random` [...], uint32, make a whole way
    together.

    A magnitude that would round beyond the largest finite one becomes infinity, or else NaN, or else the largest;
    with `saturate` the largest at once, infinity too. Signs are kept, those of zero and NaN too. Where a format
    has no NaN it becomes a zero of the other sign, as in ml_dtypes.
    """
    form = float_format(format)
    check_rounding("encode_float_ref", rounding)
    with np.errstate(invalid="ignore"):  # a signalling NaN is as good as another
        x = np.asarray(x, np.float64)
    size = np.where(np.isnan(x), 0, np.minimum(np.abs(x), np.finfo(np.float64).max / 4))
    ladder = magnitudes(form, np.arange(form.largest + 2))  # one step beyond the largest
    below = np.searchsorted(ladder, size, side="right") - 1
    above = np.minimum(below + 1, form.largest + 1)
    low, high = ladder[below], ladder[above]
    way = np.minimum((size - low) / np.where(high > low, high - low, 1), 1)  # from low to high
    if rounding == "nearest":
        up = (way > 0.5) | ((way == 0.5) & (below % 2 == 1))
    elif rounding == "toward zero":
        up = np.zeros(x.shape, bool)
    else:
        steps, drawn = (
            1 << RANDOM_BITS,
            np.asarray(random_bits("encode_float_ref", random, x.shape)) >> (32 - RANDOM_BITS),
        )
        up = np.floor(way * steps) + drawn >= steps
    codes = np.where(up, above, below)

    over = (codes > form.largest) & ((rounding != "toward zero") | np.isinf(x))
    instead = (
        form.largest if saturate else next(c for c in (form.infinity, form.nan, form.largest) if c is not None)
    )
    codes = np.where(over, instead, np.minimum(codes, form.largest))
    sign = 1 << (form.bits - 1)
    codes = np.where(np.isnan(x), sign if form.nan is None else form.nan, codes)
    return (codes ^ np.where(np.signbit(x), sign, 0)).astype(np.uint16)
