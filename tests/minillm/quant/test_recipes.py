"""Weights in few bits: what `ops` says they are, whoever asks, and a model that still works."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm import ops
from minillm.errors import UserError
from minillm.quant.coded import Coded
from minillm.quant.dynamic import Dynamic
from minillm.quant.recipes import NARROWER, PRODUCTS, STORAGES, recipe_named, weight_like
from minillm.quant.storage import GGUF, NF4, TILE, Blocks, Floats, Ints

RECIPES = [
    *STORAGES,
    "int8",
    "int4",
    "int2",
    "ternary",
    "int4-g32",
    "int4-g32-affine",
    "int8-g16",
    "int2-g64-affine",
]
every_recipe = pytest.mark.parametrize("recipe", RECIPES)
WIDTH = 256
LIKE_OTHERS = ("fp8-tensor-a8", "mxfp6-a6", "mxint8-a8")  # but for numbers that other tests hold


def slow(recipe: str):
    return pytest.param(recipe, marks=pytest.mark.slow)


def matrix(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def by_ops(w: np.ndarray, recipe: str) -> np.ndarray:
    """What the definitions in `ops` make of a matrix."""
    storage = recipe_named(recipe).storage
    if isinstance(storage, GGUF):
        return ops.decode_gguf(ops.encode_gguf(w, storage.type), storage.type)
    if isinstance(storage, Ints):
        coded = ops.encode_ints_ref(w, storage.format, group=storage.group, affine=storage.affine)
        return ops.decode_ints_ref(coded).astype(np.float32)
    if isinstance(storage, Blocks):
        return ops.decode_blocks_ref(ops.encode_blocks_ref(w, storage.format), storage.format).astype(np.float32)
    if isinstance(storage, NF4):
        return ops.decode_nf4_ref(ops.encode_nf4_ref(w)).astype(np.float32)
    assert isinstance(storage, Floats)
    codes, scales = fp8_by_hand(w, storage)
    return ops.decode_float_ref(codes, "e4m3fn").astype(np.float32) * np.repeat(
        scales, w.shape[1] // scales.shape[1], 1
    )


def fp8_by_hand(w: np.ndarray, storage: Floats) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of fp8, tile by tile."""
    rows, columns = {"row": (1, w.shape[1]), "tensor": w.shape, "tile": (TILE, TILE)}[storage.scale]
    codes, scales = np.zeros(w.shape, np.uint8), np.zeros((len(w), w.shape[1] // columns), np.float32)
    for i in range(0, len(w), rows):
        for j in range(0, w.shape[1], columns):
            tile = w[i : i + rows, j : j + columns]
            scale = np.abs(tile).max() * np.float32(1 / 448)
            codes[i : i + rows, j : j + columns] = ops.encode_float_ref(tile / scale, "e4m3fn", saturate=True)
            scales[i : i + rows, j // columns] = scale
    return codes, scales


@jax.jit
def uses(weight, x, ids):
    """The matrix, products with it and with its transpose, and rows of it."""
    return weight.dense(), x[:, :6] @ weight, x @ weight.T, weight.rows(ids)


@every_recipe
def test_a_matrix_is_what_ops_says_it_is_to_the_bit_and_so_is_all_that_is_made_of_it(recipe):
    w, x, ids = matrix(6, WIDTH), matrix(3, WIDTH), np.array([[0, 5, 6], [3, 3, -1]])
    weight, expected = Coded.of(w, recipe_named(recipe).storage, transposed=False), by_ops(w, recipe)
    dense, y, back, rows = uses(weight, x, ids)
    assert weight.shape == (6, WIDTH)
    assert weight.T.shape == (WIDTH, 6)
    assert np.array_equal(dense, expected)
    assert np.array_equal(rows[:, :2], expected[ids[:, :2]])
    assert np.all(np.isnan(rows[:, 2]))  # there are no such rows
    assert_sums(y, x[:, :6], expected)
    assert_sums(back, x, expected.T)


def assert_sums(found, x: np.ndarray, w: np.ndarray) -> None:
    """A product is x @ w, but for what summing in float32 loses."""
    x, w = x.astype(np.float64), w.astype(np.float64)
    assert np.all(np.abs(found - x @ w) <= 2.0**-23 * len(w) * (np.abs(x) @ np.abs(w)))


@jax.jit
def by_experts(weight, x, sizes, first, last):
    """The product in groups, and that of the first two and of the other rows with a matrix each."""
    return weight.grouped(x, sizes), x[:2] @ first, x[2:] @ last


@pytest.mark.parametrize("recipe", ["int4-g32-affine", "q4_k", "w8a8", *map(slow, ("nvfp4", "fp8-tile-a8"))])
def test_experts_are_quantised_one_by_one(recipe):
    one, x = recipe_named(recipe), matrix(5, WIDTH)
    parts = [one.storage.encode(w) for w in matrix(3, 6, WIDTH)]
    stack = one.weight(tuple(jnp.stack(part) for part in zip(*parts, strict=True)), WIDTH, True)
    first, _, last = (one.weight(tuple(map(jnp.asarray, part)), WIDTH, True) for part in parts)
    assert stack.shape == (WIDTH, 6)
    together, *apart = by_experts(stack, x, np.array([2, 0, 3], np.int32), first, last)
    assert np.allclose(together, np.concatenate(apart), rtol=1e-6, atol=1e-5)


def product_by_ops(x: np.ndarray, w: np.ndarray, recipe: str) -> np.ndarray:
    """What the recipes in `ops` make of a product, both sides coded by their definitions."""
    if recipe in ("w8a8", "w4a8"):
        a = ops.encode_ints_ref(x, "int8")
        b = ops.encode_ints_ref(w, recipe.replace("w", "int")[:4], group=32 if recipe == "w4a8" else None)
        if recipe == "w8a8":
            return ops.int8_matmul_recipe(a.codes, b.codes, a.scales[:, 0], b.scales[:, 0])
        return ops.grouped_int_matmul_recipe(a.codes, b.codes, a.scales[:, 0], b.scales)
    if recipe.startswith("fp8"):
        storage = recipe_named(recipe).storage
        assert isinstance(storage, Floats)
        b, scales = fp8_by_hand(w, storage)
        rows = x.reshape(-1, TILE) if storage.scale == "tile" else x
        a, a_scales = fp8_by_hand(rows, Floats("row"))
        return ops.fp8_matmul_recipe(a.reshape(x.shape), b, a_scales.reshape(len(x), -1), scales)
    format = {"mxfp8-a8": "mxfp8_e4m3", "mxfp6-a6": "mxfp6_e2m3"}.get(recipe, recipe.partition("-")[0])
    b = ops.encode_blocks_ref(w, format)
    if format != "nvfp4":
        a = ops.encode_blocks_ref(x, format)
        return ops.mx_matmul_recipe(a.elements, b.elements, a.scales, b.scales, format=format)
    each = [ops.encode_blocks_ref(row[None], format) for row in x]
    y = [
        ops.nvfp4_matmul_recipe(a.elements, b.elements, a.scales, b.scales, a.tensor_scale, b.tensor_scale)
        for a in each
    ]
    return np.concatenate(y)


@jax.jit
def two_sided(weight, x, ids):
    """A lone row's product and that of all, the matrix, and columns of it."""
    return x[:1] @ weight, x @ weight, weight.dense(), weight.T.rows(ids)


@pytest.mark.parametrize("recipe", [slow(name) if name in LIKE_OTHERS else name for name in PRODUCTS])
@given(seed=st.integers(0, 99))
@settings(max_examples=4)
def test_products_of_two_coded_sides_follow_their_recipe_to_the_bit(recipe, seed):
    rng, ids = np.random.default_rng(seed), np.array([5, 2])
    x, w = (rng.normal(size=(n, WIDTH)).astype(np.float32) for n in (4, 6))
    lone, every, dense, columns = two_sided(Dynamic.of(w, PRODUCTS[recipe], transposed=True), x, ids)
    expected, decoded = product_by_ops(x, w, recipe), by_ops(w, recipe)
    assert np.array_equal(lone, expected[:1])
    assert np.array_equal(every, expected)
    assert np.array_equal(dense, decoded.T)
    assert np.array_equal(columns, decoded[ids])


def test_a_product_with_both_sides_coded_has_one_side_only():
    weight = Dynamic.of(matrix(7, WIDTH), PRODUCTS["w8a8"], transposed=False)
    with pytest.raises(ValueError, match="its scales belong to rows"):
        _ = jnp.ones((2, 7)) @ weight
    with pytest.raises(ValueError, match=r"x has 3 columns, but the weight is \[256, 7\]"):
        _ = jnp.ones((2, 3)) @ weight.T


@pytest.mark.parametrize("recipe", [*RECIPES, *PRODUCTS])
def test_parts_have_the_shapes_and_dtypes_that_an_empty_weight_says(recipe):
    one, w = recipe_named(recipe), matrix(6, WIDTH)
    found, empty = one.storage.encode(w), weight_like(one, (6,), WIDTH, True, jax.ShapeDtypeStruct)
    assert [(part.shape, part.dtype) for part in found] == [
        (leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(empty)
    ]


def test_rows_that_fill_no_large_block_get_a_narrower_type():
    for name, instead in NARROWER.items():
        assert recipe_named(name).for_rows_of(512) == recipe_named(name)
        assert recipe_named(name).for_rows_of(96) == recipe_named(instead)
        assert recipe_named(name).for_rows_of(100) is None
    assert recipe_named("int4-g32").for_rows_of(48) is None


@pytest.mark.parametrize("recipe", ["", "int5", "int4-g0", "ternary-affine", "Q4_K", "int4-g32-", "w8a16"])
def test_a_recipe_that_is_none_is_refused_and_the_others_are_listed(recipe):
    with pytest.raises(UserError, match=r"expected one of int8, int4, .* w8a8, w4a8"):
        recipe_named(recipe)
