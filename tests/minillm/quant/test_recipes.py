"""Weights in few bits: what `ops` says they are, whoever asks, and a model that still works."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm import ops
from minillm.errors import UserError
from minillm.quant import Dense
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


@every_recipe
def test_a_matrix_is_what_ops_says_it_is_to_the_bit(recipe):
    w = matrix(6, WIDTH)
    coded = Coded.of(w, recipe_named(recipe).storage, transposed=True)
    assert coded.shape == (WIDTH, 6)
    assert np.array_equal(jax.jit(lambda c: c.T.dense())(coded), by_ops(w, recipe))


@every_recipe
def test_products_rows_and_transposes_are_those_of_the_decoded_matrix(recipe):
    coded = Coded.of(matrix(6, WIDTH), recipe_named(recipe).storage, transposed=False)
    plain, x = Dense(coded.dense()), jnp.asarray(matrix(3, WIDTH))
    assert np.array_equal(x @ coded.T, x @ plain.T)
    assert np.array_equal(x[:, :6] @ coded, x[:, :6] @ plain)
    ids = jnp.asarray([[0, 5], [3, 3]])
    assert np.array_equal(coded.rows(ids), plain.rows(ids))
    assert np.all(np.isnan(coded.rows(jnp.asarray([6, -1]))))


@pytest.mark.parametrize("recipe", ["int4-g32-affine", "nvfp4", "q4_k", "w8a8", "fp8-tile-a8"])
def test_experts_are_quantised_one_by_one(recipe):
    stack, sizes, x = matrix(3, 5, WIDTH), jnp.asarray([2, 0, 3]), jnp.asarray(matrix(5, WIDTH))
    one = recipe_named(recipe)
    parts = [one.storage.encode(w) for w in stack]
    coded = one.weight(tuple(jnp.stack(part) for part in zip(*parts, strict=True)), WIDTH, True)
    single = [one.weight(tuple(map(jnp.asarray, part)), WIDTH, True) for part in parts]
    assert coded.shape == (WIDTH, 5)
    expected = np.concatenate([x[:2] @ single[0], x[2:] @ single[2]])
    assert np.allclose(coded.grouped(x, sizes), expected, rtol=1e-6, atol=1e-5)


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


@pytest.mark.parametrize("recipe", PRODUCTS)
@given(rows=st.integers(1, 4), seed=st.integers(0, 99))
@settings(max_examples=4)
def test_products_of_two_coded_sides_follow_their_recipe_to_the_bit(recipe, rows, seed):
    rng = np.random.default_rng(seed)
    x, w = (rng.normal(size=(n, WIDTH)).astype(np.float32) for n in (rows, 7))
    weight = Dynamic.of(w, PRODUCTS[recipe], transposed=True)
    assert np.array_equal(jax.jit(lambda x, w: x @ w)(x, weight), product_by_ops(x, w, recipe))
    storage = recipe_named(recipe).storage
    plain = Coded.of(w, storage, True)
    assert np.array_equal(weight.dense(), plain.dense())
    assert np.array_equal(weight.T.rows(jnp.asarray([6, 2])), plain.T.rows(jnp.asarray([6, 2])))


def test_a_product_with_both_sides_coded_has_one_side_only():
    weight = Dynamic.of(matrix(7, WIDTH), PRODUCTS["w8a8"], transposed=False)
    with pytest.raises(ValueError, match="its scales belong to rows"):
        _ = jnp.ones((2, 7)) @ weight
    with pytest.raises(ValueError, match=r"x has 3 columns, but the weight is \[256, 7\]"):
        _ = jnp.ones((2, 3)) @ weight.T


@pytest.mark.parametrize("recipe", [*RECIPES, *PRODUCTS])
def test_parts_have_the_shapes_and_dtypes_that_an_empty_weight_says(recipe):
    one, w = recipe_named(recipe), matrix(5, WIDTH)
    found, empty = one.storage.encode(w), weight_like(one, (5,), WIDTH, True, jax.ShapeDtypeStruct)
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
