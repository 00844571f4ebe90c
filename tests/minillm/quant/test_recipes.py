"""Weights in few bits: what `ops` says they are, whoever asks, and a model that still works."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

import minillm
from minillm import ops
from minillm.errors import UserError
from minillm.quant import Dense
from minillm.quant.coded import Coded
from minillm.quant.int8 import Int8
from minillm.quant.recipes import STORAGES, bits_a_weight, quantised, storage_named, summary
from minillm.quant.storage import GGUF, NF4, Blocks, Floats, Ints

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
    storage = storage_named(recipe)
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
    largest = np.abs(w).max(axis=1, keepdims=True) if storage.by_row else np.abs(w).max()
    scale = (largest * np.float32(1 / 448)).astype(np.float32)
    codes = ops.encode_float_ref(w / scale, "e4m3fn", saturate=True)
    return ops.decode_float_ref(codes, "e4m3fn").astype(np.float32) * scale


@every_recipe
def test_a_matrix_is_what_ops_says_it_is_to_the_bit(recipe):
    w = matrix(6, WIDTH)
    coded = Coded.of(w, storage_named(recipe), transposed=True)
    assert coded.shape == (WIDTH, 6)
    assert np.array_equal(jax.jit(lambda c: c.T.dense())(coded), by_ops(w, recipe))


@every_recipe
def test_products_rows_and_transposes_are_those_of_the_decoded_matrix(recipe):
    coded = Coded.of(matrix(6, WIDTH), storage_named(recipe), transposed=False)
    plain, x = Dense(coded.dense()), jnp.asarray(matrix(3, WIDTH))
    assert np.array_equal(x @ coded.T, x @ plain.T)
    assert np.array_equal(x[:, :6] @ coded, x[:, :6] @ plain)
    ids = jnp.asarray([[0, 5], [3, 3]])
    assert np.array_equal(coded.rows(ids), plain.rows(ids))
    assert np.all(np.isnan(coded.rows(jnp.asarray([6, -1]))))


@pytest.mark.parametrize("recipe", ["int4-g32-affine", "nvfp4", "q4_k", "w8a8"])
def test_experts_are_quantised_one_by_one(recipe):
    stack, sizes, x = matrix(3, 5, WIDTH), jnp.asarray([2, 0, 3]), jnp.asarray(matrix(5, WIDTH))
    if recipe == "w8a8":
        coded, single = Int8.of(stack), [Int8.of(one) for one in stack]
    else:
        storage = storage_named(recipe)
        coded, single = Coded.of(stack, storage, True), [Coded.of(one, storage, True) for one in stack]
    assert coded.shape == (WIDTH, 5)
    expected = np.concatenate([x[:2] @ single[0], x[2:] @ single[2]])
    assert np.allclose(coded.grouped(x, sizes), expected, rtol=1e-6, atol=1e-5)


@given(rows=st.integers(1, 5), seed=st.integers(0, 99))
@settings(max_examples=8)
def test_a_product_of_bytes_follows_its_recipe_to_the_bit_also_with_a_lone_row(rows, seed):
    x = np.random.default_rng(seed).normal(size=(rows, 24)).astype(np.float32)
    weight = Int8.of(matrix(7, 24))
    a, w = ops.encode_ints_ref(x, "int8"), ops.encode_ints_ref(matrix(7, 24), "int8")
    expected = ops.int8_matmul_recipe(a.codes, w.codes, a.scales[:, 0], w.scales[:, 0])
    assert np.array_equal(jax.jit(lambda x, w: x @ w)(jnp.asarray(x), weight), expected)
    assert np.array_equal(weight.T.rows(jnp.asarray([6, 2])), ops.decode_ints_ref(w)[[6, 2]].astype(np.float32))
    assert np.array_equal(weight.dense(), ops.decode_ints_ref(w).astype(np.float32).T)


@pytest.fixture(scope="module")
def lm():
    return minillm.load("tiny-moe")


TEXT = "Recipe: Tomato Soup\n\nIngredients:\n- 200 g tomato\n- 50 g onion\n\nSteps:\n1. Cut the tomato."


def divergence(lm, recipe: str) -> float:
    """Mean Kullback-Leibler divergence of a quantised model's predictions from the model's own, in nats."""
    tokens = [lm.tokenizer.encode(TEXT)]
    p, q = (jax.nn.log_softmax(one.logits(tokens)[0]) for one in (lm, lm.quantize(recipe)[0]))
    return float(jnp.mean(jnp.sum(jnp.exp(p) * (p - q), axis=-1)))


@pytest.mark.usefixtures("quick_programs")
def test_fewer_bits_cost_more():
    lm = minillm.load("tiny-transformer")
    found = [divergence(lm, recipe) for recipe in ("q8_0", "q6_k", "q5_k", "q4_k", "q3_k", "q2_k")]
    assert found == sorted(found)
    assert found[0] < 1e-3 < found[-1]
    assert divergence(lm, "w8a8") < 2e-3


def test_the_report_says_what_each_matrix_takes_and_what_stayed(lm):
    model, changes = quantised(lm.model, "q4_k")
    by_place = {change.place: change for change in changes}
    assert by_place["blocks[1].router"].kept == "stays in every recipe"
    assert by_place["blocks[1].up"].count == 8
    assert by_place["embed"].bits == 4.5
    assert by_place["blocks[0].qkv"].shape == (256, 768)
    total = sum(leaf.nbytes for change, leaf in zip(changes, weights_of(model), strict=True))
    assert 8 * total / sum(c.count * c.shape[0] * c.shape[1] for c in changes) == pytest.approx(
        bits_a_weight(changes)
    )
    assert summary("q4_k", changes) == f"q4_k: {bits_a_weight(changes):.2f} bits a weight"


def weights_of(model):
    """All weights of a model, with the bytes that they take."""

    class Bytes:
        def __init__(self, weight):
            self.nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(weight))

    leaves = jax.tree.leaves(model, is_leaf=lambda node: hasattr(node, "for_rows"))
    return [Bytes(leaf) for leaf in leaves if hasattr(leaf, "for_rows")]


def test_matrices_whose_rows_make_no_blocks_stay_and_are_named(tmp_path):
    tiny.unpacked("llama_0", tmp_path)
    lm = minillm.load(tmp_path)
    with pytest.raises(
        UserError, match=r"no matrix can be stored as q4_k: embed: its rows of \d+ are no multiple of 256"
    ):
        lm.quantize("q4_k")
    _, changes = lm.quantize("int4-g32")
    kept = [change for change in changes if change.kept]
    assert 0 < len(kept) < len(changes)
    assert f"{len(kept)} of {len(changes)} matrices stay as they are, {kept[0].place}" in summary(
        "int4-g32", changes
    )


@pytest.mark.usefixtures("quick_programs")
@pytest.mark.parametrize("recipe", ["w8a8", "int4-g32"])
def test_a_quantised_model_says_the_same_alone_and_in_company(recipe):
    from minillm.engine import Engine

    lm, _ = minillm.load("tiny-draft").quantize(recipe)
    prompts = [f"Recipe: {name} Soup\n" for name in ("Tomato", "Pea", "Onion and Carrot")]
    options = {"max_tokens": 16, "temperature": 0.8, "seed": 3}
    alone = [lm.generate(prompt, exact=True, **options).tokens for prompt in prompts]
    engine = Engine(lm, max_batch=3, context=64, exact=True)
    requests = [engine.submit(prompt, **options) for prompt in prompts]
    engine.run()
    assert [request.tokens for request in requests] == alone


def test_numbers_that_are_none_are_named_and_not_quantised(lm):
    qkv = lm.model.blocks[0].qkv
    bad = lm.model.blocks[0].replace(qkv=Dense(qkv.array.at[3, 5].set(jnp.nan), qkv.transposed))
    model = lm.model.replace(blocks=(bad, *lm.model.blocks[1:]))
    for recipe in ("w8a8", "int4-g32", "fp8", "nvfp4", "nf4", "q4_k"):
        with pytest.raises(UserError, match=rf"blocks\[0\].qkv cannot be stored as {recipe}: .*NaN or infinity"):
            quantised(model, recipe)


@pytest.mark.parametrize("recipe", ["", "int5", "int4-g0", "ternary-affine", "Q4_K", "int4-g32-", "w8a16"])
def test_a_recipe_that_is_none_is_refused_and_the_others_are_listed(lm, recipe):
    with pytest.raises(UserError, match="expected one of w8a8, int8, int4"):
        lm.quantize(recipe)


def test_a_model_is_quantised_once(lm):
    once, _ = lm.quantize("int8")
    with pytest.raises(UserError, match="embed is stored as Coded, expected plain numbers: quantise a model once"):
        once.quantize("int4")
