"""Products of quantised matrices: JAX follows each recipe to the bit, and recipes are near the ideal."""

from typing import Any

import jax
import numpy as np
import pytest
from agreement import AS_USERS
from hypothesis import given, settings
from hypothesis import strategies as st

import minillm.ops
from minillm.ops.cases import Op
from minillm.ops.judge import OPS as SUBJECTS
from minillm.ops.qmatmul import matmul, recipes
from minillm.ops.qmatmul.cases import OPS as PRODUCTS

ops: Any = minillm.ops  # whose forms take NumPy arrays as well
OPS: dict[str, Op] = {name: op for name, op in SUBJECTS.items() if isinstance(op, Op)}
RECIPES = {op.name: getattr(recipes, f"{op.name}_recipe") for op in PRODUCTS if op.name != "weight_only_matmul"}
CASES = [(name, case) for name in RECIPES for case in OPS[name].cases]
every_case = pytest.mark.parametrize(("name", "case"), CASES, ids=[f"{name}-{case.name}" for name, case in CASES])


def arrays_of(name: str, case, seed: int) -> tuple[list[np.ndarray], dict]:
    """Inputs of a case by position and by keyword; scales in float32."""
    drawn = OPS[name].draw(case, np.random.default_rng(seed))
    drawn = {key: x.astype(np.float32) if x.dtype == np.float64 else x for key, x in drawn.items()}
    required = [drawn.pop(key) for key in OPS[name].required]
    return required, {**drawn, **case.options}


@every_case
def test_jax_follows_the_recipe_to_the_bit(name, case):
    for seed in range(3):
        required, rest = arrays_of(name, case, seed)
        expected, form = RECIPES[name](*required, **rest), getattr(matmul, name)
        assert expected.dtype == np.float32
        options = {key: value for key, value in rest.items() if not isinstance(value, np.ndarray)}
        compiled = jax.jit(form, static_argnames=tuple(options), compiler_options=AS_USERS)
        assert np.array_equal(np.asarray(compiled(*required, **rest)), expected, equal_nan=True)


ONCE = [(name, case) for name in RECIPES for case in OPS[name].cases[2:3]]


@pytest.mark.parametrize(("name", "case"), [*ONCE, *(pytest.param(*one, marks=pytest.mark.slow) for one in CASES)])
def test_jax_follows_the_recipe_operation_by_operation_too(name, case):
    """Each is a program of its own then, which is slow to compile."""
    required, rest = arrays_of(name, case, seed=2)
    found = getattr(matmul, name)(*required, **rest)
    assert np.array_equal(np.asarray(found), RECIPES[name](*required, **rest), equal_nan=True)


@every_case
def test_recipes_are_as_near_the_ideal_as_float32_sums_are(name, case):
    required, rest = arrays_of(name, case, 0)
    found, ideal = RECIPES[name](*required, **rest), OPS[name].ref(*required, **rest)
    terms = required[0].shape[1]
    assert np.all(np.abs(found - ideal) <= 2.0**-23 * terms * sizes(name, required, rest))


def sizes(name: str, required: list[np.ndarray], rest: dict) -> np.ndarray:
    """Sums of the absolute values of all terms, which errors are measured by."""
    op = OPS[name]
    x, w = required[:2]
    absolute = []
    for codes, wide in ((x, "x"), (w, "w")):
        if codes.dtype == np.uint8 and name in ("fp8_matmul", "mx_matmul", "nvfp4_matmul"):
            sign = 1 << (bits_of(rest, name, wide) - 1)
            absolute.append((codes & (sign - 1)).astype(np.uint8))
        else:
            absolute.append(np.abs(codes.astype(np.int32)))
    without_zeros = {key: value for key, value in rest.items() if not key.endswith("_zero")}
    size = op.ref(*absolute, *required[2:], **without_zeros)
    for key in ("x_zero", "w_zero"):
        if rest.get(key) is not None:
            size = size * 2 + op.ref(*absolute, *required[2:], **{**rest, key: -rest[key].astype(np.int32)})
    return size


def bits_of(rest: dict, name: str, side: str) -> int:
    """Bits of the elements of one side."""
    if name == "nvfp4_matmul":
        return 4
    element = rest[f"{side}_format"] if name == "fp8_matmul" else ops.BLOCKS[rest["format"]].element
    return 8 if element == "int8" else ops.FLOATS[element].bits


@given(
    seed=st.integers(0, 2**16),
    t=st.integers(0, 6),
    f=st.integers(0, 9),
    d=st.integers(1, 700) | st.integers(matmul.LONG_ROW, 1100),
)
@settings(max_examples=25)
def test_integer_products_are_exact_whatever_order_suits_the_processor(seed, t, f, d):
    rng = np.random.default_rng(seed)
    x, w = rng.choice([-127, 127], (t, d)).astype(np.int8), rng.choice([-127, -126, 127], (f, d)).astype(np.int8)
    one = np.ones(t, np.float32), np.ones(f, np.float32)
    exact = x.astype(np.int64) @ w.astype(np.int64).T
    assert np.array_equal(ops.int8_matmul(x, w, *one), exact.astype(np.float32))


def test_what_is_coded_multiplies_as_what_it_decodes_to():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(4, 128)).astype(np.float32), rng.normal(size=(6, 128)).astype(np.float32)
    a, b = ops.encode_ints_ref(x, "int8"), ops.encode_ints_ref(w, "int8")
    y = ops.int8_matmul(a.codes, b.codes, a.scales[:, 0], b.scales[:, 0])
    assert np.allclose(y, ops.decode_ints_ref(a) @ ops.decode_ints_ref(b).T, rtol=1e-5, atol=1e-5)
    b = ops.encode_ints_ref(w, "int4", group=32, affine=True)
    wide = ops.decode_ints_ref(b)
    y = ops.grouped_int_matmul(a.codes, b.codes, a.scales[:, 0], b.scales, w_zero=b.zeros)
    assert np.allclose(y, ops.decode_ints_ref(a) @ wide.T, rtol=1e-5, atol=1e-5)
    y = ops.weight_only_matmul(x, b.codes, b.scales, w_zero=b.zeros)
    assert np.allclose(y, x @ wide.T, rtol=1e-5, atol=1e-5)
    for name in ops.BLOCKS:
        a, b = ops.encode_blocks_ref(x, name), ops.encode_blocks_ref(w, name)
        wide = ops.decode_blocks_ref(a, name) @ ops.decode_blocks_ref(b, name).T
        if name == "nvfp4":
            y = ops.nvfp4_matmul(a.elements, b.elements, a.scales, b.scales, a.tensor_scale, b.tensor_scale)
        else:
            y = ops.mx_matmul(a.elements, b.elements, a.scales, b.scales, format=name)
        assert np.allclose(y, wide, rtol=1e-5, atol=1e-5)


def test_an_unknown_scale_makes_its_row_unknown():
    x, scale = np.ones((2, 32), np.uint8), np.array([[127], [255]], np.uint8)
    y = np.asarray(ops.mx_matmul(x, x[:1], scale, scale[:1], format="mxfp4"))
    assert np.isnan(y).tolist() == [[False], [True]]


@pytest.mark.parametrize(
    ("name", "shapes", "message"),
    [
        (
            "grouped_int_matmul",
            [(2, 10), (3, 10), (2,), (3, 4)],
            "10 columns and 4 scales for a row, expected a div",
        ),
        ("weight_only_matmul", [(2, 10), (3, 10), (3, 4)], "10 columns and 4 scales for a row"),
        ("fp8_matmul", [(4, 8), (3, 8), (3, 1), (1, 1)], "4 rows of x and 3 rows of scales, expected a divisor"),
        ("fp8_matmul", [(4, 8), (3, 8), (2, 3), (1, 3)], "8 columns and 3 scales for a row"),
        ("mx_matmul", [(2, 48), (3, 48), (2, 1), (3, 1)], "48 columns and 1 scales for a row, expected 32 columns"),
        ("nvfp4_matmul", [(2, 32), (3, 32), (2, 1), (3, 1), (), ()], "expected 16 columns for each"),
        ("int8_matmul", [(2, 8), (3, 9), (2,), (3,)], r"w \[f d\] has d = 9, but x has d = 8"),
    ],
)
def test_sizes_that_do_not_fit_are_named(name, shapes, message):
    floats = {"fp8_matmul": (2, 3), "mx_matmul": (), "nvfp4_matmul": (4, 5), "weight_only_matmul": (0, 2)}.get(
        name, (2, 3)
    )
    given_arrays = [np.zeros(s, np.float32 if i in floats else np.uint8) for i, s in enumerate(shapes)]
    with pytest.raises(ValueError, match=message):
        getattr(ops, name)(*given_arrays)
