"""What casts to and from number formats are tried on. Codes are integers, so nothing but equality passes.

Numbers are drawn in terms of the format: its own, halfway between two of them, just beside that, and out of its
range. NaN is left to the tests: which of several NaNs a cast gives is no kernel's mistake.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from ..cases import Arrays, Call, Case, Law, Op
from ..shapes import shaped
from .blocks import decode_blocks, encode_blocks
from .blocks_ref import BLOCKS, Coded, block_format, decode_blocks_ref, encode_blocks_ref
from .e8m0 import decode_e8m0, decode_e8m0_ref, encode_e8m0, encode_e8m0_ref
from .floats import decode_float, encode_float
from .floats_ref import FLOATS, decode_float_ref, encode_float_ref, float_format, magnitudes
from .gguf import GGUF_TYPES
from .gguf.jax_decode import decode_gguf_blocks
from .gguf.ref import decode_gguf_block_ref
from .gguf.tensor import decode_gguf, gguf_type
from .integers import decode_ints, encode_ints
from .integers_ref import CodedInts, decode_ints_ref, encode_ints_ref
from .nf4 import SIZE as NF4_SIZE
from .nf4 import CodedNF4, decode_nf4, decode_nf4_ref, encode_nf4, encode_nf4_ref
from .packing import pack, pack_ref, unpack, unpack_ref

ROUNDINGS = ("nearest", "toward zero", "stochastic")


def new_case(sizes: str, name: str, inputs: tuple[str, ...] = (), **options: Any) -> Case:
    """A case of sizes t f: rows, and numbers or groups or blocks in a row."""
    return Case(name, dict(zip("tf", map(int, sizes.split()), strict=True)), options, inputs)


def shape_of(case: Case, size: int = 1) -> tuple[int, int]:
    """Rows, and columns of `size` numbers for each of f."""
    return case.sizes["t"], case.sizes["f"] * size


def near_codes(form_name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Numbers at, between and just beside the middles of a format's numbers; one in ten is larger or smaller."""
    form = float_format(form_name)
    ladder = magnitudes(form, np.arange(form.largest + 2))
    below = rng.integers(0, form.largest + 1, shape)
    way = rng.choice([0, 0.25, 0.5 - 2.0**-12, 0.5, 0.5 + 2.0**-12, 0.75], shape)
    x = ladder[below] + way * (ladder[below + 1] - ladder[below])
    far = rng.choice([1.0, 4.0, 0.25], shape, p=[0.9, 0.05, 0.05])
    return np.minimum(x * far, 2.0**127) * rng.choice([-1.0, 1.0], shape)


def draw_for_float(case: Case, rng: np.random.Generator) -> Arrays:
    """Numbers around those of the format, and random bits for stochastic rounding."""
    shape = shape_of(case)
    arrays = {"x": near_codes(case.options["format"], shape, rng)}
    return arrays | ({"random": rng.integers(0, 2**32, shape, np.uint32)} if case.inputs else {})


def uniform_blocks(size: Callable[[Case], int]):
    """A draw of normal numbers in blocks, each with a size of its own; `size` gives the numbers of a block."""

    def draw(case: Case, rng: np.random.Generator) -> Arrays:
        """Of 2^-12 to 2^12, some of them whole numbers."""
        t, f = shape_of(case)
        x = rng.normal(size=(t, f, size(case))) * np.exp2(rng.integers(-12, 13, (t, f, 1)))
        return {"x": np.where(rng.random((t, f, 1)) < 0.3, np.round(x), x).reshape(t, -1)}

    return draw


def outlier(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
    """One number in each row takes all the range."""
    x = arrays["x"].copy()
    x[:, rng.integers(x.shape[1])] *= 1000
    return {**arrays, "x": x}


def empty_blocks(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
    """A row of zeros, the last one: its scale is 0, and so must be its codes."""
    x = arrays["x"].copy()
    x[-1] = 0
    return {**arrays, "x": x}


def powers_of_two(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
    """Numbers at which scales step."""
    sign = np.where(arrays["x"] < 0, -1.0, 1.0)
    return {**arrays, "x": sign * np.exp2(np.round(np.log2(np.abs(arrays["x"]) + 2.0**-20)))}


def just_below_powers_of_two(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
    """Negative numbers that a scale for the power below them does not reach: they must not wrap.

    Some are so near it that a float32 logarithm takes them for it.
    """
    below = rng.choice([2 - 2.0**-9, 2 - 2.0**-23], arrays["x"].shape)
    return {**arrays, "x": -below * np.exp2(np.round(np.log2(np.abs(arrays["x"]) + 2.0**-20)))}


STYLES = {
    "just below powers of two": just_below_powers_of_two,
    "outlier": outlier,
    "empty blocks": empty_blocks,
    "powers of two": powers_of_two,
}


def unknown_codes(call: Call, arrays: Arrays, options: Mapping[str, Any], rng: np.random.Generator):
    """NaN comes from the codes that are NaN, and from no others."""
    form = FLOATS[options["format"]]
    every = np.resize(np.arange(1 << form.bits), arrays["codes"].shape).astype(arrays["codes"].dtype)
    (x,) = call(**{**arrays, "codes": every}, **options)
    return (np.isnan(x).astype(float),), (np.isnan(decode_float_ref(every, form.name)).astype(float),)


def draw_codes(case: Case, rng: np.random.Generator) -> Arrays:
    """Any codes of the format that are numbers, or infinite."""
    every = np.arange(1 << float_format(case.options["format"]).bits)
    known = every[~np.isnan(decode_float_ref(every, case.options["format"]))]
    return {"codes": rng.choice(known, shape_of(case)).astype(np.uint16 if every.size > 256 else np.uint8)}


ENCODE_FLOAT = Op(
    name="encode_float",
    ref=encode_float_ref,
    forms={"encode_float": encode_float},
    required=("x",),
    outputs=("codes",),
    cases=tuple(
        new_case(
            "3 100",
            f"{name}, {rounding}{', saturating' if saturate else ''}",
            ("random",) if rounding == "stochastic" else (),
            format=name,
            rounding=rounding,
            saturate=saturate,
        )
        for name in FLOATS
        for rounding in ROUNDINGS
        for saturate in (False, True)
    ),
    draw=draw_for_float,
)
DECODE_FLOAT = Op(
    name="decode_float",
    ref=decode_float_ref,
    forms={"decode_float": decode_float},
    required=("codes",),
    outputs=("x",),
    cases=tuple(new_case("2 300", name, format=name) for name in FLOATS),
    draw=draw_codes,
    exact=draw_codes,
    laws=(Law("what is no number", unknown_codes, exact=True),),
)


def no_powers(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
    """What no power of two is near: nothing, less than that, too much, and NaN."""
    odd = rng.choice([0.0, -0.0, -1.0, -(2.0**-3), np.inf, -np.inf, np.nan], arrays["x"].shape)
    return {**arrays, "x": np.where(rng.random(odd.shape) < 0.5, odd, arrays["x"])}


def draw_for_e8m0(case: Case, rng: np.random.Generator) -> Arrays:
    """Positive numbers of all sizes, many of them half way between two powers of two."""
    shape = shape_of(case)
    return {"x": np.exp2(rng.integers(-120, 120, shape)) * rng.choice([1, 1.25, 1.5, 1.75, 1.5 - 2.0**-8], shape)}


ENCODE_E8M0 = Op(
    name="encode_e8m0",
    ref=encode_e8m0_ref,
    forms={"encode_e8m0": encode_e8m0},
    required=("x",),
    outputs=("codes",),
    cases=tuple(new_case("2 50", side, side=side) for side in ("nearest", "floor", "ceil")),
    draw=draw_for_e8m0,
    styles={"no powers": no_powers},
    recipe="what is not positive and finite becomes NaN, code 255",
)


def unknown_scales(call: Call, arrays: Arrays, options: Mapping[str, Any], rng: np.random.Generator):
    """The code 255 is NaN, and makes all NaN that it scales."""
    name = "scales" if "scales" in arrays else "codes"
    codes = arrays[name].copy()
    codes[0, 0] = 255
    (x,) = call(**{**arrays, name: codes}, **options)
    repeats = x.shape[-1] // codes.shape[-1]
    return (np.isnan(x).astype(float),), (np.repeat(codes == 255, repeats, axis=-1).astype(float),)


def draw_e8m0(case: Case, rng: np.random.Generator) -> Arrays:
    """Any codes but 0, whose number is subnormal, and NaN."""
    return {"codes": rng.integers(1, 255, shape_of(case)).astype(np.uint8)}


DECODE_E8M0 = Op(
    name="decode_e8m0",
    ref=decode_e8m0_ref,
    forms={"decode_e8m0": decode_e8m0},
    required=("codes",),
    outputs=("x",),
    cases=(new_case("2 300", "all"),),
    draw=draw_e8m0,
    exact=draw_e8m0,
    laws=(Law("what is no number", unknown_scales, exact=True),),
)


@shaped("x: ... float")
def cast_blocks(x: jax.Array, *, format: str, policy: Any = None) -> tuple[jax.Array, ...]:
    """`encode_blocks` without what a format has not."""
    return tuple(one for one in encode_blocks(x, format, policy) if one is not None)


def cast_blocks_ref(x: np.ndarray, *, format: str, policy: Any = None) -> tuple[np.ndarray, ...]:
    """`encode_blocks_ref` without what a format has not."""
    return tuple(one for one in encode_blocks_ref(x, format, policy) if one is not None)


@shaped("elements: ... int, scales: ... int, tensor_scale: float")
def uncast_blocks(
    elements: jax.Array, scales: jax.Array, tensor_scale: jax.Array | None = None, *, format: str
) -> jax.Array:
    """`decode_blocks` of arrays by name."""
    return decode_blocks(Coded(elements, scales, tensor_scale), format)


def uncast_blocks_ref(elements, scales, tensor_scale=None, *, format: str) -> np.ndarray:
    """`decode_blocks_ref` of arrays by name."""
    wide = None if tensor_scale is None else np.float32(tensor_scale)
    return decode_blocks_ref(Coded(elements, scales, wide), format)


def draw_coded(case: Case, rng: np.random.Generator) -> Arrays:
    """What numbers are coded as."""
    x = uniform_blocks(lambda case: block_format(case.options["format"]).size)(case, rng)["x"]
    coded = cast_blocks_ref(x, format=case.options["format"])
    arrays = dict(zip(("elements", "scales", "tensor_scale"), coded, strict=False))
    return arrays | ({"tensor_scale": np.asarray(coded[2], np.float64)} if len(coded) > 2 else {})


MX = [name for name in BLOCKS if name != "nvfp4"]
ENCODE_MX = Op(
    name="encode_mx",
    ref=cast_blocks_ref,
    forms={"encode_blocks": cast_blocks},
    required=("x",),
    outputs=("elements", "scales"),
    cases=tuple(
        new_case("2 3", f"{name}, {policy}", format=name, policy=policy)
        for name in MX
        for policy in ("floor", "ceil")
    ),
    draw=uniform_blocks(lambda case: 32),
    styles=STYLES,
    recipe="a block of zeros has the scale code 0; too large elements saturate; zeros keep their sign",
)
DECODE_MX = Op(
    name="decode_mx",
    ref=uncast_blocks_ref,
    forms={"decode_blocks": uncast_blocks},
    required=("elements", "scales"),
    outputs=("x",),
    cases=tuple(new_case("2 3", name, format=name) for name in MX),
    draw=draw_coded,
    exact=draw_coded,
    laws=(Law("what is no number", unknown_scales, exact=True),),
)
ENCODE_NVFP4 = Op(
    name="encode_nvfp4",
    ref=cast_blocks_ref,
    forms={"encode_blocks": cast_blocks},
    required=("x",),
    outputs=("elements", "scales", "tensor_scale"),
    cases=(new_case("2 3", "small", format="nvfp4"), new_case("5 40", "large", format="nvfp4")),
    draw=uniform_blocks(lambda case: 16),
    styles=STYLES,
    recipe=(
        "tensor scale max|x| * f32(1/2688); block scale the e4m3fn nearest to (max|block| * f32(1/6)) / that;\n"
        "elements the e2m1 nearest to x / (block scale * tensor scale); where that is 0, a zero of x's sign"
    ),
)
DECODE_NVFP4 = Op(
    name="decode_nvfp4",
    ref=uncast_blocks_ref,
    forms={"decode_blocks": uncast_blocks},
    required=("elements", "scales", "tensor_scale"),
    outputs=("x",),
    cases=(new_case("2 3", "small", format="nvfp4"), new_case("5 40", "large", format="nvfp4")),
    draw=draw_coded,
    wide=("tensor_scale",),
)


@shaped("x: ... float")
def cast_ints(x: jax.Array, **options: Any) -> tuple[jax.Array, ...]:
    """`encode_ints` without zero points where there are none."""
    return tuple(one for one in encode_ints(x, **options) if one is not None)


def cast_ints_ref(x: np.ndarray, **options: Any) -> tuple[np.ndarray, ...]:
    """`encode_ints_ref` without zero points where there are none."""
    return tuple(one for one in encode_ints_ref(x, **options) if one is not None)


@shaped("codes: ... int, scales: ... float, zeros: ... int")
def uncast_ints(codes: jax.Array, scales: jax.Array, *, zeros: jax.Array | None = None) -> jax.Array:
    """`decode_ints` of arrays by name."""
    return decode_ints(CodedInts(codes, scales, zeros))


def uncast_ints_ref(codes, scales, *, zeros=None) -> np.ndarray:
    """`decode_ints_ref` of arrays by name."""
    return decode_ints_ref(CodedInts(codes, scales, zeros))


def int_cases(affine: bool) -> tuple[Case, ...]:
    """Groups of eight, of 32 and of a whole row, in every width."""
    names = ("int8", "int4", "int2") if affine else ("int8", "int4", "int2", "ternary")
    return tuple(
        new_case("3 4", f"{name}, group {group or 'of a row'}", format=name, group=group, affine=affine)
        for name in names
        for group in (8, 32, None)
    )


def draw_coded_ints(case: Case, rng: np.random.Generator) -> Arrays:
    """Codes of groups of eight with scales of all sizes."""
    t, f = shape_of(case)
    codes = rng.integers(*((0, 16) if case.inputs else (-7, 8)), (t, f * 8))
    arrays = {
        "codes": codes.astype(np.uint8 if case.inputs else np.int8),
        "scales": np.exp2(rng.normal(size=(t, f))),
    }
    return arrays | ({"zeros": rng.integers(0, 16, (t, f)).astype(np.int32)} if case.inputs else {})


SYMMETRIC_RECIPE = (
    "scale max|x| * f32(1/127), 1/7 or 1 (of ternary the mean, summed by halves); codes rint(x / scale):\n"
    "max / 127 and x * (1 / scale) differ from that where x / scale is half way"
)
AFFINE_RECIPE = (
    "scale (max(x, 0) - min(x, 0)) * f32(1/255), 1/15 or 1/3; zero rint(-min / scale); codes rint(x / scale) + zero"
)


def int_op(name: str, affine: bool) -> Op:
    """The cast with zero points, or without."""
    return Op(
        name=name,
        ref=cast_ints_ref,
        forms={"encode_ints": cast_ints},
        required=("x",),
        outputs=("codes", "scales", "zeros") if affine else ("codes", "scales"),
        cases=int_cases(affine),
        draw=uniform_blocks(lambda case: case.options["group"] or 20),
        styles=STYLES,
        recipe=AFFINE_RECIPE if affine else SYMMETRIC_RECIPE,
    )


ENCODE_INTS, ENCODE_AFFINE_INTS = int_op("encode_ints", False), int_op("encode_affine_ints", True)
DECODE_INTS = Op(
    name="decode_ints",
    ref=uncast_ints_ref,
    forms={"decode_ints": uncast_ints},
    required=("codes", "scales"),
    outputs=("x",),
    cases=(new_case("3 4", "symmetric"), new_case("3 4", "affine", ("zeros",))),
    draw=draw_coded_ints,
    wide=("scales",),
)


@shaped("x: ... float")
def cast_nf4(x: jax.Array) -> tuple[jax.Array, ...]:
    """`encode_nf4` as a plain tuple."""
    return tuple(encode_nf4(x))


@shaped("codes: ... int, scales: ... float")
def uncast_nf4(codes: jax.Array, scales: jax.Array) -> jax.Array:
    """`decode_nf4` of arrays by name."""
    return decode_nf4(CodedNF4(codes, scales))


def draw_coded_nf4(case: Case, rng: np.random.Generator) -> Arrays:
    """Any codes, scales of all sizes."""
    t, f = shape_of(case)
    return {
        "codes": rng.integers(0, 16, (t, f * NF4_SIZE)).astype(np.uint8),
        "scales": np.exp2(rng.normal(size=(t, f))),
    }


ENCODE_NF4 = Op(
    name="encode_nf4",
    ref=lambda x: tuple(encode_nf4_ref(x)),
    forms={"encode_nf4": cast_nf4},
    required=("x",),
    outputs=("codes", "scales"),
    cases=(new_case("2 3", "small"), new_case("4 9", "large")),
    draw=uniform_blocks(lambda case: NF4_SIZE),
    styles=STYLES,
)
DECODE_NF4 = Op(
    name="decode_nf4",
    ref=lambda codes, scales: decode_nf4_ref(CodedNF4(codes, scales)),
    forms={"decode_nf4": uncast_nf4},
    required=("codes", "scales"),
    outputs=("x",),
    cases=(new_case("2 3", "small"),),
    draw=draw_coded_nf4,
    wide=("scales",),
)


def draw_small_codes(case: Case, rng: np.random.Generator) -> Arrays:
    """Codes of so many bits, eight for each of f."""
    return {"codes": rng.integers(0, 1 << case.options["bits"], shape_of(case, 8)).astype(np.uint8)}


def draw_bytes(case: Case, rng: np.random.Generator) -> Arrays:
    """Any bytes, as many as eight codes fill for each of f."""
    return {"data": rng.integers(0, 256, shape_of(case, case.options["bits"])).astype(np.uint8)}


WIDTHS = tuple(new_case("2 5", f"{bits} bits", bits=bits) for bits in (1, 2, 4, 6))
PACK = Op(
    name="pack",
    ref=pack_ref,
    forms={"pack": pack},
    required=("codes",),
    outputs=("data",),
    cases=WIDTHS,
    draw=draw_small_codes,
)
UNPACK = Op(
    name="unpack",
    ref=unpack_ref,
    forms={"unpack": unpack},
    required=("data",),
    outputs=("codes",),
    cases=WIDTHS,
    draw=draw_bytes,
)


def gguf_ref(data: np.ndarray, *, type: str) -> np.ndarray:
    """`decode_gguf_block_ref` of every block, float64."""
    rows = data.reshape(-1, gguf_type(type).size)
    numbers = [decode_gguf_block_ref(type, row.tobytes()) for row in rows]
    return np.array(numbers, np.float64).reshape(*data.shape[:-1], -1)


def draw_gguf(case: Case, rng: np.random.Generator) -> Arrays:
    """Blocks of any bytes of which only normal float32 numbers come, and 0."""
    name, n = case.options["type"], case.sizes["t"] * case.sizes["f"]
    data = rng.integers(0, 256, (16 * n, gguf_type(name).size), np.uint8)
    size = np.abs(decode_gguf(data, name))
    good = np.all((size == 0) | ((size >= np.finfo(np.float32).tiny) & (size <= 2.0**120)), axis=1)
    return {"data": data[good][:n].reshape(case.sizes["t"], -1)}


DECODE_GGUF = Op(
    name="decode_gguf",
    ref=gguf_ref,
    forms={"decode_gguf_blocks": decode_gguf_blocks},
    required=("data",),
    outputs=("x",),
    cases=tuple(
        new_case("2 40" if form.values == 1 else "2 3", form.name, type=form.name) for form in GGUF_TYPES.values()
    ),
    draw=draw_gguf,
    exact=draw_gguf,
)
OPS = (
    *(ENCODE_FLOAT, DECODE_FLOAT, ENCODE_E8M0, DECODE_E8M0, ENCODE_MX, DECODE_MX, ENCODE_NVFP4, DECODE_NVFP4),
    *(ENCODE_INTS, ENCODE_AFFINE_INTS, DECODE_INTS, ENCODE_NF4, DECODE_NF4, PACK, UNPACK, DECODE_GGUF),
)
