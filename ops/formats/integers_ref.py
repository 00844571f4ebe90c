"""Integers with a scale: int8, int4, int2 and ternary, by definition.

    symmetric   x = s q          q from -(2^(bits - 1) - 1) to 2^(bits - 1) - 1,    s = max|x| / the largest q
    affine      x = s (q - z)    q from 0 to 2^bits - 1,    s = (max x - min x) / the largest q,    z = -min x / s
    ternary     x = s q          q one of -1, 0, 1,    s = mean|x| (BitNet b1.58; arXiv:2402.17764, section 2)

Affine codes hold 0 exactly: what spans from 1 to 3 is treated as if it began at 0. A scale belongs to `group`
numbers that follow each other along the last axis, or to the whole of it. That is a channel of a weight [out, in]
and a token of activations [token, channel]; a tensor with one scale is an array of one axis.

A scale is a sum, a maximum or a mean times a float32 constant; codes are x / s, rounded to nearest, ties to even.
Sums have a declared order (`halving_sum`), and numbers below the normal ones of float32 count as 0, so that every
device gets the same bits.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from .rounding import divided_ref, normal_ref

Scale = Literal["absmax", "mse"]
TRIALS = 64  # scales that a search tries, from the one that reaches the largest number down to half of it


@dataclass(frozen=True)
class IntFormat:
    """Integers of so many bits; `largest` is the greatest symmetric one."""

    name: str
    bits: int
    largest: int


INTS = {
    one.name: one
    for one in (
        IntFormat("int8", 8, 127),
        IntFormat("int4", 4, 7),
        IntFormat("int2", 2, 1),
        IntFormat("ternary", 2, 1),
    )
}


class CodedInts(NamedTuple):
    """codes [..., n], int8, or uint8 if affine; scales f32 [..., n / group]; zeros uint8 like scales, or None."""

    codes: Any
    scales: Any
    zeros: Any = None


def int_format(name: str, affine: bool = False) -> IntFormat:
    """A format by name; ValueError lists those there are."""
    if name not in INTS:
        raise ValueError(f"format is {name!r}, expected one of {', '.join(INTS)}")
    if affine and name == "ternary":
        raise ValueError("format is 'ternary' and affine, expected symmetric: its codes are -1, 0 and 1")
    return INTS[name]


def in_groups(op: str, x: np.ndarray, group: int | None) -> np.ndarray:
    """x [..., n] as [..., n / group, group]; ValueError if that does not come out even."""
    size = x.shape[-1] if group is None and x.ndim else group
    if x.ndim == 0 or x.size == 0 or not size or size < 0 or x.shape[-1] % size:
        wanted = "one axis or more, and not empty" if group is None else f"a last axis of a multiple of {group}"
        raise ValueError(f"{op}: x has shape {list(x.shape)}, expected {wanted}")
    return x.reshape(*x.shape[:-1], -1, size)


def encode_ints_ref(
    x: np.ndarray,
    format: str,
    *,
    group: int | None = None,
    affine: bool = False,
    scale: Scale = "absmax",
    importance: np.ndarray | None = None,
) -> CodedInts:
    """Codes and scales of numbers x [..., n]; ValueError if groups do not come out even or x is not finite.

    `mse` tries scales below that of `absmax` (or around the mean, for ternary) and takes, group by group, the one
    whose squared errors sum up least, each times the importance [..., n] of its number if that is given.
    """
    form, x = int_format(format, affine), normal_ref(np.asarray(x, np.float32))
    groups = in_groups("encode_ints_ref", x, group)
    if not np.all(np.isfinite(x)):
        raise ValueError("encode_ints_ref: x holds NaN or infinity, expected finite numbers")
    weights = checked_importance(x, scale, importance)
    scales, origin = first_scale_ref(groups, form, affine)
    if not np.all(np.isfinite(scales)):
        raise ValueError("encode_ints_ref: x spans or sums up to more than float32 holds, expected smaller numbers")
    if scale == "mse":
        scales = searched_ref(groups, weights.reshape(groups.shape), scales, origin, form, affine)
    codes, zeros = codes_ref(groups, scales, origin, form, affine)
    return CodedInts(codes.reshape(x.shape), scales, zeros if affine else None)


def checked_importance(x: np.ndarray, scale: str, importance: np.ndarray | None) -> np.ndarray:
    """What the squared error of each number counts, float64; ValueError if that cannot be meant."""
    if scale not in ("absmax", "mse"):
        raise ValueError(f"encode_ints_ref: scale is {scale!r}, expected absmax or mse")
    if importance is None:
        return np.ones(x.shape)
    if scale != "mse":
        raise ValueError("encode_ints_ref: importance is given for absmax, expected it only for mse")
    weights = np.broadcast_to(np.asarray(importance, np.float64), x.shape)
    if not (np.all(np.isfinite(weights)) and weights.min() >= 0):
        raise ValueError("encode_ints_ref: importance holds NaN, infinity or less than 0, expected weights")
    return weights


def first_scale_ref(groups: np.ndarray, form: IntFormat, affine: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scales that reach all numbers of a group, and the least number that is to be reached."""
    if form.name == "ternary":
        with np.errstate(over="ignore"):
            mean = halving_sum(np.abs(groups)) * np.float32(1 / groups.shape[-1])
        return normal_ref(mean), np.zeros_like(mean)
    if affine:
        least, most = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)
        with np.errstate(over="ignore"):
            return normal_ref((most - least) * np.float32(1 / (2**form.bits - 1))), least
    largest = np.max(np.abs(groups), axis=-1)
    return normal_ref(largest * np.float32(1 / form.largest)), np.zeros_like(largest)


def codes_ref(
    groups: np.ndarray, scales: np.ndarray, origin: np.ndarray, form: IntFormat, affine: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Codes of groups of numbers with given scales, and their zero points (0 if symmetric)."""
    steps = np.rint(divided_ref(groups, scales))
    if not affine:
        return np.clip(steps, -form.largest, form.largest).astype(np.int8), np.zeros(scales.shape, np.uint8)
    top = 2**form.bits - 1
    zeros = np.clip(np.rint(divided_ref(-origin[..., None], scales))[..., 0], 0, top)
    return np.clip(steps + zeros[..., None], 0, top).astype(np.uint8), zeros.astype(np.uint8)


def searched_ref(
    groups: np.ndarray,
    weights: np.ndarray,
    scales: np.ndarray,
    origin: np.ndarray,
    form: IntFormat,
    affine: bool,
) -> np.ndarray:
    """For each group that one of TRIALS scales whose weighted squared error is least, the larger of equals."""
    best, least = scales, np.full(scales.shape, np.inf)
    widest = np.float32(2 if form.name == "ternary" else 1)
    for i in range(TRIALS + 1):
        tried = normal_ref(scales * (widest * np.float32(1 - i / (2 * TRIALS))))
        codes, zeros = codes_ref(groups, tried, origin, form, affine)
        decoded = (codes.astype(np.float64) - zeros[..., None]) * tried[..., None]
        error = np.sum(weights * np.square(groups - decoded), axis=-1)
        best, least = np.where(error < least, tried, best), np.minimum(error, least)
    return best


def check_coded(op: str, coded: CodedInts) -> None:
    """ValueError unless each group of codes has a scale, and a zero point if there are any."""
    codes, scales = coded.codes.shape, coded.scales.shape
    zeros = scales if coded.zeros is None else coded.zeros.shape
    if zeros != scales or scales[:-1] != codes[:-1] or not scales or not scales[-1] or codes[-1] % scales[-1]:
        found = f"codes {list(codes)}, scales {list(scales)}, zeros {list(zeros)}"
        raise ValueError(f"{op}: shapes are {found}, expected a scale, and a zero point if any, for each group")


def decode_ints_ref(coded: CodedInts) -> np.ndarray:
    """Float64 numbers [..., n], exact."""
    check_coded("decode_ints_ref", coded)
    groups = coded.codes.reshape(*coded.scales.shape, -1).astype(np.float64)
    zeros = 0 if coded.zeros is None else coded.zeros[..., None].astype(np.float64)
    return ((groups - zeros) * coded.scales[..., None]).reshape(coded.codes.shape)


def halving_sum(x: np.ndarray) -> np.ndarray:
    """Sum over the last axis, zeros filling it up to a power of two: halves are added until one number is left."""
    width = 1 << (x.shape[-1] - 1).bit_length()
    x = np.concatenate([x, np.zeros((*x.shape[:-1], width - x.shape[-1]), x.dtype)], axis=-1)
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    return x[..., 0]
