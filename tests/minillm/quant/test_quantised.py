"""Quantised models: what becomes of each matrix, what is said of it, and that the model still works."""

from concurrent.futures import Future

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import minillm
from minillm import ops
from minillm.errors import UserError
from minillm.lm import LM
from minillm.quant import Dense, is_weight
from minillm.quant.coded import Coded
from minillm.quant.quantised import bits_a_weight, quantised, summary
from minillm.quant.rules import read_rules
from minillm.quant.storage import GGUF


@pytest.fixture(scope="module")
def lm():
    return minillm.load("tiny-moe")


TEXT = "Recipe: Tomato Soup\n\nIngredients:\n- 200 g tomato\n- 50 g onion\n\nSteps:\n1. Cut the tomato."


def divergence(lm, model) -> float:
    """Mean Kullback-Leibler divergence of another model's predictions from a model's own, in nats."""
    tokens = [lm.tokenizer.encode(TEXT)]
    other = LM(lm.config, None, lm.shapes, Future())
    other.weights.set_result(model)
    p, q = (jax.nn.log_softmax(one.logits(tokens)[0]) for one in (lm, other))
    return float(jnp.mean(jnp.sum(jnp.exp(p) * (p - q), axis=-1)))


def decoded(weight):
    """A matrix of a GGUF type as plain numbers, by its definition: so all types share one program."""
    if not isinstance(weight, Coded):
        return weight
    assert isinstance(weight.storage, GGUF)
    plain = ops.decode_gguf(np.asarray(weight.parts[0]), weight.storage.type)
    return Dense(jnp.asarray(plain), weight.transposed)


@pytest.mark.usefixtures("quick_programs")
def test_fewer_bits_cost_more():
    """Of two matrices a layer: `bench.quality` has the others."""
    lm, found = minillm.load("tiny-transformer"), []
    for name in ("q8_0", "q6_k", "q5_k", "q4_k", "q3_k", "q2_k"):
        model = lm.quantize(f"down={name},out={name}")[0].model
        found.append(divergence(lm, jax.tree.map(decoded, model, is_leaf=is_weight)))
    assert found == sorted(found)
    assert found[0] < 1e-3 < found[-1]
    assert divergence(lm, lm.quantize("w8a8")[0].model) < 2e-3


def test_the_report_says_what_each_matrix_takes_and_what_stayed(lm):
    model, changes = quantised(lm.model, read_rules("q8_0"))
    by_place = {change.place: change for change in changes}
    assert by_place["blocks[1].router"].kept == "stays in every recipe"
    assert by_place["blocks[1].up"].count == 8
    assert by_place["embed"].bits == 8.5
    assert by_place["blocks[0].qkv"].shape == (256, 768)
    total = sum(leaf.nbytes for change, leaf in zip(changes, weights_of(model), strict=True))
    assert 8 * total / sum(c.count * c.shape[0] * c.shape[1] for c in changes) == pytest.approx(
        bits_a_weight(changes)
    )
    assert summary("q8_0", changes) == f"q8_0: {bits_a_weight(changes):.2f} bits a weight"


def weights_of(model):
    """All weights of a model, with the bytes that they take."""

    class Bytes:
        def __init__(self, weight):
            self.nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(weight))

    leaves = jax.tree.leaves(model, is_leaf=is_weight)
    return [Bytes(leaf) for leaf in leaves if is_weight(leaf)]


def test_matrices_whose_rows_make_no_blocks_stay_and_are_named(tmp_path):
    tiny.unpacked("llama_0", tmp_path)
    lm = minillm.load(tmp_path)
    with pytest.raises(
        UserError, match=r"no matrix can be stored as told; embed: its rows of \d+ are no multiple of 128"
    ):
        lm.quantize("fp8-tile")
    _, changes = lm.quantize("int4-g32")
    kept = [change for change in changes if change.kept]
    assert 0 < len(kept) < len(changes)
    said = f"{len(kept)} of {len(changes)} matrices otherwise, {kept[0].place}: stays as it is, as its rows of"
    assert said in summary("int4-g32", changes)


def test_a_narrower_type_where_rows_fill_no_large_block_is_said_by_name():
    lm = minillm.load("tiny-draft")  # whose rows are 96 and 256 numbers long
    _, changes = lm.quantize("q4_k")
    assert {change.recipe for change in changes} == {"q4_k", "q5_0"}
    said = "embed: q5_0 in place of q4_k, as its rows of 96 are no multiple of 256"
    assert said in summary("q4_k", changes)
    assert {change.bits for change in changes} == {4.5, 5.5}


def test_rules_choose_recipes_by_name_and_place_and_the_last_one_counts(lm):
    _, changes = lm.quantize("int4-g32, up=int8, blocks[1].up=keep, embed=q8_0")
    found = {change.place: change.recipe for change in changes}
    assert found["embed"] == "q8_0"
    assert found["blocks[0].qkv"] == "int4-g32"
    assert found["blocks[1].up"] is None
    assert found["blocks[3].up"] == "int8"
    kept = [change for change in changes if change.kept == "was to be kept"]
    assert [change.place for change in kept] == ["blocks[1].up"]
    assert "otherwise" not in summary("mixed", changes)


def test_without_a_rule_for_all_the_others_stay(lm):
    _, changes = lm.quantize("down=int8")
    assert {change.place.rpartition(".")[2] for change in changes if change.recipe} == {"down"}


@pytest.mark.slow
def test_a_quantised_model_says_the_same_alone_and_in_company():
    """`bench.lattice` tries W8A8."""
    from minillm.engine import Engine

    lm, _ = minillm.load("tiny-draft").quantize("int4-g32")
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
            quantised(model, read_rules(f"qkv={recipe}"))


def test_a_model_is_quantised_once(lm):
    once, _ = lm.quantize("int8")
    with pytest.raises(UserError, match="embed is stored as Coded, expected plain numbers: quantise a model once"):
        once.quantize("int4")
