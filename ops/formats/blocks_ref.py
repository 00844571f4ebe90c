"""Blocks of numbers that share a scale: the OCP Microscaling formats, NVFP4 and integers, by definition.

    MX      element_i = cast(x_i / 2^E), one E for 32 numbers, kept as the byte E + 127 (e8m0; 255 is NaN)
    NVFP4   element_i = cast(x_i / (s t)), s of 16 numbers in e4m3fn, t of the whole tensor in float32

Sources: OCP Microscaling Formats (MX) Specification 1.0, sections 5.2 and 6.3; NVIDIA, "Pretraining Large Language
Models with NVFP4" (arXiv:2509.25149). E is chosen by a policy:

    floor   floor(log2 max|x|) less the exponent of the largest element; what is then too large saturates (OCP)
    ceil    the smallest E for which nothing is too large
    mse     that one of floor's and the next for which the squared errors of the block sum up less

and so is s of NVFP4:

    absmax  nothing is too large
    mse     of that and the next eight below, the one for which they sum up least

Every step is exact or rounded once in float32, and no step may divide by a constant (a compiler would multiply with
its reciprocal) or depend on subnormals (which many devices take for zero): so every device gets the same bits.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from .e8m0 import decode_e8m0_ref
from .floats_ref import FLOATS, FloatFormat, decode_float_ref, encode_float_ref
from .rounding import divided_ref, normal_ref

Policy = Literal["floor", "ceil", "absmax", "mse"]
POLICIES: dict[str, tuple[Policy, ...]] = {"e8m0": ("floor", "ceil", "mse"), "e4m3fn": ("absmax", "mse")}
SMALLER = 8  # scales below that of absmax which a search tries


@dataclass(frozen=True)
class BlockFormat:
    """`size` numbers share a scale; they are kept in the float format `element`, or as int8 in steps of 1/64."""

    name: str
    element: str
    size: int
    scale: Literal["e8m0", "e4m3fn"] = "e8m0"

    @property
    def element_format(self) -> FloatFormat | None:
        """The elements' format, None for integers."""
        return FLOATS.get(self.element)

    @property
    def max(self) -> float:
        """The largest element."""
        return self.element_format.max if self.element_format else 127 / 64


BLOCKS = {
    one.name: one
    for one in (
        BlockFormat("mxfp8_e5m2", "e5m2", 32),
        BlockFormat("mxfp8_e4m3", "e4m3fn", 32),
        BlockFormat("mxfp6_e3m2", "e3m2", 32),
        BlockFormat("mxfp6_e2m3", "e2m3", 32),
        BlockFormat("mxfp4", "e2m1", 32),
        BlockFormat("mxint8", "int8", 32),
        BlockFormat("nvfp4", "e2m1", 16, "e4m3fn"),
    )
}


class Coded(NamedTuple):
    """Numbers [..., n] in blocks: elements [..., n] uint8 (int8 of mxint8), scales [..., n / size] uint8, and the
    tensor's own scale, float32 [] (NVFP4; else None).
    """

    elements: Any
    scales: Any
    tensor_scale: Any = None


def block_format(name: str) -> BlockFormat:
    """A format by name; ValueError lists those there are."""
    if name not in BLOCKS:
        raise ValueError(f"format is {name!r}, expected one of {', '.join(BLOCKS)}")
    return BLOCKS[name]


def policy_of(form: BlockFormat, policy: Policy | None, known: tuple[Policy, ...]) -> Policy:
    """The policy, by default the first of those for such scales; ValueError if it is none of the known ones."""
    for_scales = [one for one in POLICIES[form.scale] if one in known]
    if policy is not None and policy not in for_scales:
        raise ValueError(f"policy is {policy!r}, expected one of {', '.join(for_scales)} for {form.name}")
    return policy or for_scales[0]


def encode_blocks_ref(x: np.ndarray, format: str, policy: Policy | None = None) -> Coded:
    """Numbers x [..., n], n a multiple of the block's size. ValueError if it is not, or if x is not finite."""
    form, x = block_format(format), np.asarray(x, np.float32)
    policy = policy_of(form, policy, ("floor", "ceil", "absmax", "mse"))
    blocks = in_blocks("encode_blocks_ref", x, form)
    if not np.all(np.isfinite(x)):
        raise ValueError("encode_blocks_ref: x holds NaN or infinity, expected finite numbers")
    largest = np.max(np.abs(blocks), axis=-1)
    if form.scale == "e4m3fn":
        return encode_nvfp4_ref(x, blocks, largest, form, policy)
    exponent = shared_exponent_ref(largest, form, policy)
    if policy == "mse":
        finer, coarser = (squared_error(blocks, np.ldexp(1.0, exponent + i), form) for i in (0, 1))
        exponent = np.minimum(exponent + (coarser < finer), 127)
    scaled = np.ldexp(blocks.astype(np.float64), -exponent[..., None])
    return Coded(encode_elements_ref(scaled, form).reshape(x.shape), (exponent + 127).astype(np.uint8))


def squared_error(blocks: np.ndarray, steps: np.ndarray, form: BlockFormat) -> np.ndarray:
    """Sum over each block of the squared errors that elements with given scales make."""
    safe = np.where(steps > 0, steps, 1)[..., None].astype(np.float64)
    elements = encode_elements_ref(blocks / safe, form)
    return np.sum(np.square(blocks - numbers_of(elements, form) * safe), axis=-1)


def shared_exponent_ref(largest: np.ndarray, form: BlockFormat, policy: Policy) -> np.ndarray:
    """The exponent E of blocks whose largest magnitudes are given, from -127 to 127; of zeros it is -127."""
    _, above = np.frexp(largest.astype(np.float64))  # largest = fraction * 2^above, fraction from 1/2 to 1
    exponent = above - 1 - int(np.floor(np.log2(form.max)))
    if policy == "ceil":
        exponent += np.ldexp(largest.astype(np.float64), -exponent) > form.max
    return np.clip(np.where(largest > 0, exponent, -127), -127, 127)


def encode_elements_ref(scaled: np.ndarray, form: BlockFormat) -> np.ndarray:
    """Elements of numbers that were divided by their scale; too large ones saturate."""
    if form.element_format:
        return encode_float_ref(scaled, form.element, saturate=True).astype(np.uint8)
    return np.clip(np.rint(scaled * 64), -127, 127).astype(np.int8)


def encode_nvfp4_ref(
    x: np.ndarray, blocks: np.ndarray, largest: np.ndarray, form: BlockFormat, policy: Policy
) -> Coded:
    """t is the float32 nearest to max|x| / (6 * 448), s the e4m3fn nearest to max|block| / (6 t)."""
    sixth, top = np.float32(1 / 6), np.float32(1 / (6 * 448))
    tensor = normal_ref(np.max(largest, initial=0) * top)
    wanted = divided_ref(normal_ref(largest * sixth), np.broadcast_to(tensor, largest.shape[:-1]))
    scales = encode_float_ref(wanted, "e4m3fn", saturate=True)
    if policy == "mse":
        tried = np.maximum(scales.astype(np.int64) - np.arange(SMALLER + 1).reshape(-1, *[1] * scales.ndim), 0)
        steps = [normal_ref(decode_float_ref(one, "e4m3fn").astype(np.float32) * tensor) for one in tried]
        errors = [np.where(step > 0, squared_error(blocks, step, form), np.inf) for step in steps]
        scales = np.take_along_axis(tried, np.argmin(errors, axis=0)[None], axis=0)[0]
    step = normal_ref(decode_float_ref(scales, "e4m3fn").astype(np.float32) * tensor)
    elements = encode_elements_ref(divided_ref(blocks, step), form)
    return Coded(elements.reshape(x.shape), scales.astype(np.uint8), tensor)


def decode_blocks_ref(coded: Coded, format: str) -> np.ndarray:
    """Float64 numbers [..., n]; NVFP4's scales are multiplied in float32, everything else is exact."""
    form = block_format(format)
    elements = in_blocks("decode_blocks_ref", coded.elements, form)
    check_blocks("decode_blocks_ref", coded, form)
    numbers = numbers_of(elements, form)
    if coded.tensor_scale is None:
        scale = decode_e8m0_ref(coded.scales)
    else:
        scale = normal_ref(decode_float_ref(coded.scales, "e4m3fn").astype(np.float32) * coded.tensor_scale)
    return (numbers * scale[..., None].astype(np.float64)).reshape(coded.elements.shape)


def check_blocks(op: str, coded: Coded, form: BlockFormat) -> None:
    """ValueError unless each block has a scale, and NVFP4 its tensor scale."""
    elements, scales = tuple(coded.elements.shape), tuple(coded.scales.shape)
    if scales != (*elements[:-1], elements[-1] // form.size):
        shapes = f"{list(scales)} for elements {list(elements)}"
        raise ValueError(f"{op}: scales are {shapes}, expected one for each {form.size} elements")
    if (coded.tensor_scale is None) != (form.scale == "e8m0"):
        found = "missing" if coded.tensor_scale is None else "given"
        raise ValueError(f"{op}: tensor_scale is {found} for {form.name}, expected it for nvfp4 and no other")


def numbers_of(elements: np.ndarray, form: BlockFormat) -> np.ndarray:
    """Float64 numbers of elements, without their scale."""
    return decode_float_ref(elements, form.element) if form.element_format else elements.astype(np.float64) / 64


def in_blocks(op: str, x: np.ndarray, form: BlockFormat) -> np.ndarray:
    """x [..., n] as [..., n / size, size]; ValueError if that does not come out even."""
    if x.ndim == 0 or x.shape[-1] % form.size or x.size == 0:
        shape = list(x.shape)
        raise ValueError(
            f"{op}: x has shape {shape}, expected a last axis of a multiple of {form.size}, and not none"
        )
    return x.reshape(*x.shape[:-1], -1, form.size)
