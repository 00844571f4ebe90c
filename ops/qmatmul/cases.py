"""What products of quantised matrices are tried on.

x has t rows and w f of them, in c groups of o columns (blocks of a fixed size have no o). Codes are drawn directly,
so that all of them occur.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..cases import Arrays, Call, Case, Law, Op
from ..formats.blocks_ref import BLOCKS, block_format
from ..formats.floats_ref import decode_float_ref, encode_float_ref, float_format
from . import matmul, ref

SIZES = ("1 1 1 1", "1 5 1 7", "3 4 1 64", "2 3 1 4096", "5 2 3 16", "4 4 2 128", "1 9 7 32")
BLOCK_SIZES = ("1 1 1", "1 5 2", "3 2 7", "4 4 64")
TILE_SIZES = {  # a scales for p rows of x each, e for q rows of w each
    "one for all": "1 3 1 4 1 64",
    "one a row": "3 1 4 1 1 300",
    "rows and groups": "3 1 4 1 3 16",
    "tiles of w": "5 1 2 4 2 128",
    "tiles of both": "2 3 2 2 3 8",
    "one product": "1 1 1 1 1 1",
}
FORMATS = ("e4m3fn", "e5m2")


def new_case(letters: str, sizes: str, name: str = "", inputs: tuple[str, ...] = (), **options: Any) -> Case:
    """A case named after its sizes, or otherwise."""
    return Case(name or sizes, dict(zip(letters, map(int, sizes.split()), strict=True)), options, inputs)


def with_and_without(zeros: str, sizes: tuple[str, ...] = SIZES) -> tuple[Case, ...]:
    """Cases with zero points and without."""
    plain = [new_case("tfco", text) for text in sizes]
    return *plain, *(new_case("tfco", text, f"{text}, zero points", (zeros,)) for text in sizes)


def scales_of(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Positive scales, a few powers of two apart."""
    return np.asarray(np.exp2(rng.uniform(-8, 3, shape)))


def integers_of(rng: np.random.Generator, shape: tuple[int, int], low: int, high: int) -> np.ndarray:
    """Integers from low to high: int8, or uint8 where none is negative."""
    return rng.integers(low, high + 1, shape).astype(np.uint8 if low >= 0 else np.int8)


def elements_of(rng: np.random.Generator, shape: tuple[int, int], element: str) -> np.ndarray:
    """Any codes of a format that are numbers."""
    if element == "int8":
        return integers_of(rng, shape, -127, 127)
    every = np.arange(1 << float_format(element).bits)
    return rng.choice(every[np.isfinite(decode_float_ref(every, element))], shape).astype(np.uint8)


def shapes_of(case: Case) -> tuple[tuple[int, int], tuple[int, int]]:
    """[t d] and [f d]."""
    d = case.sizes["c"] * case.sizes["o"]
    return (case.sizes["t"], d), (case.sizes["f"], d)


def draw_int8(case: Case, rng: np.random.Generator) -> Arrays:
    """Codes of eight bits; those of x begin at 0 where it has zero points."""
    (x, w), affine = shapes_of(case), "x_zero" in case.inputs
    arrays = {"x": integers_of(rng, x, 0, 255) if affine else integers_of(rng, x, -127, 127)}
    arrays |= {
        "w": integers_of(rng, w, -127, 127),
        "x_scale": scales_of(rng, x[0]),
        "w_scale": scales_of(rng, w[0]),
    }
    return arrays | ({"x_zero": rng.integers(0, 256, x[0]).astype(np.int32)} if affine else {})


def draw_weight_only(case: Case, rng: np.random.Generator) -> Arrays:
    """x of floats, w of four bits."""
    (x, w), affine = shapes_of(case), "w_zero" in case.inputs
    arrays = {"x": rng.normal(size=x), "w": integers_of(rng, w, 0, 15) if affine else integers_of(rng, w, -7, 7)}
    arrays |= {"w_scale": scales_of(rng, w[0], case.sizes["c"])}
    return arrays | ({"w_zero": rng.integers(0, 16, (w[0], case.sizes["c"])).astype(np.int32)} if affine else {})


def draw_grouped(case: Case, rng: np.random.Generator) -> Arrays:
    """x of eight bits, w of four."""
    x = integers_of(rng, shapes_of(case)[0], -127, 127)
    return {**draw_weight_only(case, rng), "x": x, "x_scale": scales_of(rng, len(x))}


def draw_fp8(case: Case, rng: np.random.Generator) -> Arrays:
    """Scales of tiles of p rows of x and q rows of w."""
    a, p, e, q, c, o = (case.sizes[letter] for letter in "apeqco")
    return {
        "x": elements_of(rng, (a * p, c * o), case.options["x_format"]),
        "w": elements_of(rng, (e * q, c * o), case.options["w_format"]),
        "x_scale": scales_of(rng, a, c),
        "w_scale": scales_of(rng, e, c),
    }


def draw_blocks(case: Case, rng: np.random.Generator, form: str) -> Arrays:
    """Elements of both matrices in blocks."""
    t, f, c = (case.sizes[letter] for letter in "tfc")
    one, d = block_format(form), c * block_format(form).size
    return {"x": elements_of(rng, (t, d), one.element), "w": elements_of(rng, (f, d), one.element)}


def draw_mx(case: Case, rng: np.random.Generator) -> Arrays:
    """Exponents that differ by up to 2^16 from block to block."""
    t, f, c = (case.sizes[letter] for letter in "tfc")
    scales = {f"{x}_scale": rng.integers(119, 136, (n, c)).astype(np.uint8) for x, n in (("x", t), ("w", f))}
    return draw_blocks(case, rng, case.options["format"]) | scales


def far_scales(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
    """The smallest scales there are, against the largest."""
    low = rng.integers(1, 20, arrays["x_scale"].shape).astype(np.uint8)
    return {**arrays, "x_scale": low, "w_scale": rng.integers(226, 242, arrays["w_scale"].shape).astype(np.uint8)}


def unknown_scale(call: Call, arrays: Arrays, options: Mapping[str, Any], rng: np.random.Generator):
    """The code 255 is NaN, and so is every output that needs it."""
    scale = arrays["w_scale"].copy()
    scale[0, -1] = 255
    (y,) = call(**{**arrays, "w_scale": scale}, **options)
    return (np.isnan(y).astype(float),), (np.repeat(np.arange(y.shape[1])[None] == 0, len(y), 0).astype(float),)


def draw_nvfp4(case: Case, rng: np.random.Generator) -> Arrays:
    """Any scale there is; tensor scales of any size."""
    t, f, c = (case.sizes[letter] for letter in "tfc")
    scales = {f"{x}_scale": rng.integers(0, 127, (n, c)).astype(np.uint8) for x, n in (("x", t), ("w", f))}
    tensors = {"x_tensor": scales_of(rng), "w_tensor": scales_of(rng)}
    return draw_blocks(case, rng, "nvfp4") | scales | tensors


def with_plain_scales(arrays: Arrays) -> Arrays:
    """Every scale a power of two, the same for all groups of a matrix, so that only sums of codes are left."""
    plain = {}
    for name in (name for name in arrays if name.endswith(("_scale", "_tensor"))):
        scale = arrays[name]
        if scale.dtype == np.float64:
            plain[name] = np.full(scale.shape, {"x": 0.5, "w": 4.0}[name[0]])
        else:
            plain[name] = np.full(scale.shape, 127 if "x_tensor" not in arrays else 0x38, np.uint8)  # 1
    return {**arrays, **plain}


def whole_numbers(x: np.ndarray, element: str, rng: np.random.Generator) -> np.ndarray:
    """Codes of -2 to 2, or integers that small."""
    small = rng.integers(-2, 3, x.shape)
    return small.astype(x.dtype) if element == "int8" else encode_float_ref(small, element).astype(np.uint8)


def exact_ints(draw):
    """Inputs of `draw` with plain scales; x, where it is floats, of whole numbers."""

    def exact(case: Case, rng: np.random.Generator) -> Arrays:
        """Sums of integers times powers of two."""
        arrays = with_plain_scales(draw(case, rng))
        whole = np.round(arrays["x"]) if arrays["x"].dtype == np.float64 else arrays["x"]
        return {**arrays, "x": whole}

    return exact


def exact_floats(draw):
    """Inputs of `draw` with plain scales and elements that are whole numbers."""

    def exact(case: Case, rng: np.random.Generator) -> Arrays:
        """Sums of few small numbers times powers of two."""
        arrays = with_plain_scales(draw(case, rng))
        elements = {"x": case.options.get("x_format"), "w": case.options.get("w_format")}
        shared = block_format(case.options.get("format", "nvfp4")).element
        return arrays | {n: whole_numbers(arrays[n], element or shared, rng) for n, element in elements.items()}

    return exact


def largest_codes(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
    """All products of one sign and as large as integers make them: narrow sums overflow."""
    changed = {"w": np.full_like(arrays["w"], arrays["w"].max())}
    if arrays["x"].dtype != np.float64:
        changed["x"] = np.full_like(arrays["x"], arrays["x"].max())
    return {**arrays, **changed}


def cancelling(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
    """Sums that are nearly nothing beside their terms: what narrow sums forget is all there is."""
    w, half = arrays["w"].copy(), arrays["w"].shape[1] // 2
    scale = arrays.get("w_scale")
    if half < 2 or w.dtype != np.int8 or (scale is not None and scale.ndim == 2 and scale.shape[1] > 1):
        return arrays
    x = arrays["x"].copy()
    x[:, half : 2 * half], w[:, half : 2 * half] = x[:, :half], -w[:, :half]
    w[:, 0] = np.clip(w[:, 0].astype(int) + 1, -127, 127).astype(np.int8)
    return {**arrays, "x": x, "w": w}


def twice_the_scale(call: Call, arrays: Arrays, options: Mapping[str, Any], rng: np.random.Generator):
    """Scales come in once, and as factors."""
    name = "w_tensor" if "w_tensor" in arrays else "w_scale"
    scale = arrays[name]
    doubled = scale * 2 if scale.dtype.kind == "f" else scale + np.uint8(1)
    (y,) = call(**arrays, **options)
    return (2 * y,), call(**{**arrays, name: np.asarray(doubled, scale.dtype)}, **options)


def outputs_apart(call: Call, arrays: Arrays, options: Mapping[str, Any], rng: np.random.Generator):
    """Outputs in another order are the same outputs: each has a scale and zero points of its own."""
    f = len(arrays["w"])
    if f < 2 or len(arrays["w_scale"]) != f:
        return None
    order = np.roll(np.arange(f), 1)
    moved = {name: arrays[name][order] for name in ("w", "w_scale", "w_zero") if name in arrays}
    return (call(**arrays, **options)[0][:, order],), call(**{**arrays, **moved}, **options)


LAWS = (Law("twice the scale", twice_the_scale, exact=True), Law("outputs are apart", outputs_apart))
CODED = {"outputs": ("y",), "laws": LAWS}

INT8 = Op(
    name="int8_matmul",
    ref=ref.int8_matmul_ref,
    forms={"int8_matmul": matmul.int8_matmul},
    required=("x", "w", "x_scale", "w_scale"),
    cases=with_and_without("x_zero"),
    draw=draw_int8,
    styles={"largest codes": largest_codes, "cancelling": cancelling},
    exact=exact_ints(draw_int8),
    batched=("x", "x_scale", "x_zero"),
    wide=("x_scale", "w_scale"),
    **CODED,
    recipe="sums of integers are exact (int32), and only then scaled",
)
GROUPED = Op(
    name="grouped_int_matmul",
    ref=ref.grouped_int_matmul_ref,
    forms={"grouped_int_matmul": matmul.grouped_int_matmul},
    required=("x", "w", "x_scale", "w_scale"),
    cases=with_and_without("w_zero"),
    draw=draw_grouped,
    styles={"largest codes": largest_codes, "cancelling": cancelling},
    exact=exact_ints(draw_grouped),
    batched=("x", "x_scale"),
    wide=("x_scale", "w_scale"),
    **CODED,
    recipe="sums of integers in a group are exact (int32), and only then scaled, and added in float32",
)
WEIGHT_ONLY = Op(
    name="weight_only_matmul",
    ref=ref.weight_only_matmul_ref,
    forms={"weight_only_matmul": matmul.weight_only_matmul},
    required=("x", "w", "w_scale"),
    cases=with_and_without("w_zero"),
    draw=draw_weight_only,
    styles={"largest codes": largest_codes, "cancelling": cancelling},
    exact=exact_ints(draw_weight_only),
    batched=("x",),
    wide=("w_scale",),
    **CODED,
)
FP8 = Op(
    name="fp8_matmul",
    ref=ref.fp8_matmul_ref,
    forms={"fp8_matmul": matmul.fp8_matmul},
    required=("x", "w", "x_scale", "w_scale"),
    cases=tuple(
        new_case("apeqco", sizes, f"{name}, {x} times {w}", x_format=x, w_format=w)
        for x, w in (("e4m3fn", "e4m3fn"), ("e5m2", "e4m3fn"))
        for name, sizes in TILE_SIZES.items()
    ),
    draw=draw_fp8,
    exact=exact_floats(draw_fp8),
    wide=("x_scale", "w_scale"),
    **CODED,
    recipe="sums in float32 over a group, whose scales come in after it",
)
MX = Op(
    name="mx_matmul",
    ref=ref.mx_matmul_ref,
    forms={"mx_matmul": matmul.mx_matmul},
    required=("x", "w", "x_scale", "w_scale"),
    cases=tuple(
        new_case("tfc", sizes, f"{sizes}, {name}", format=name)
        for name in BLOCKS
        if name != "nvfp4"
        for sizes in BLOCK_SIZES[: 4 if name == "mxfp4" else 3]
    ),
    draw=draw_mx,
    styles={"far scales": far_scales},
    exact=exact_floats(draw_mx),
    batched=("x", "x_scale"),
    outputs=("y",),
    laws=(*LAWS, Law("what is no number", unknown_scale, exact=True)),
    recipe="sums in float32 over a block, whose scales come in after it",
)
NVFP4 = Op(
    name="nvfp4_matmul",
    ref=ref.nvfp4_matmul_ref,
    forms={"nvfp4_matmul": matmul.nvfp4_matmul},
    required=("x", "w", "x_scale", "w_scale", "x_tensor", "w_tensor"),
    cases=tuple(new_case("tfc", sizes) for sizes in BLOCK_SIZES),
    draw=draw_nvfp4,
    exact=exact_floats(draw_nvfp4),
    batched=("x", "x_scale"),
    wide=("x_tensor", "w_tensor"),
    **CODED,
    recipe="sums in float32 over a block, whose scales come in after it",
)
OPS = (INT8, GROUPED, WEIGHT_ONLY, FP8, MX, NVFP4)
