"""Calibrated quantisation of whole models: what is asked for, what could not be done, and going on after a kill."""

import dataclasses
import itertools
from typing import Any, cast

import jax
import numpy as np
import pytest
import tiny
from agreement import QUICK

import minillm
from minillm.compress import calibration as reading
from minillm.compress import factors, methods
from minillm.compress.calibration import Inputs, calibrated, windows
from minillm.compress.methods import METHODS, Calibrated, inputs_of
from minillm.errors import UserError
from minillm.evaluate.measures import kl_divergence
from minillm.quant.quantised import quantised, rounded, summary
from minillm.quant.recipes import recipe_named
from minillm.quant.rules import read_rules
from minillm.texts import calibration, evaluation

TEXTS = calibration()[:16]


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """Unoptimised programs."""
    with pytest.MonkeyPatch.context() as patch:
        program = jax.jit(cast(Any, reading.read).__wrapped__, compiler_options=QUICK)
        patch.setattr(reading, "read", program)
        yield


@pytest.fixture(scope="module")
def lm():
    return minillm.load("tiny-draft")


@pytest.fixture(scope="module")
def inputs(lm):
    return inputs_of(lm.model, lm.tokenizer, TEXTS, lm.config.context)


def counted(x: np.ndarray) -> Inputs:
    size = np.abs(x)
    return Inputs(np.array(len(x), np.float32), x.T @ x, size.mean(0), size.max(0))


def stacked(*each: Inputs) -> Inputs:
    return Inputs(*(np.stack(figures) for figures in zip(*(vars(one).values() for one in each), strict=True)))


def same(one, other) -> bool:
    """Whether two models or weights hold the same bits."""
    leaves, others = jax.tree.leaves(one), jax.tree.leaves(other)
    return jax.tree.structure(one) == jax.tree.structure(other) and all(map(np.array_equal, leaves, others))


def by(model, recipe: str, calibrated: Calibrated):
    """A model quantised by one method."""
    return quantised(model, read_rules(recipe), lambda rule: calibrated)


def divergence(lm, model, texts: int = 10) -> float:
    """Mean Kullback-Leibler divergence of a model's predictions from lm's, on texts other than for calibration."""
    total, batches = 0.0, windows(lm.tokenizer, evaluation()[:texts], lm.config.context)
    for tokens in batches:
        p, q = (reading.read(one, tokens) for one in (lm.model, model))
        total += float(np.mean(kl_divergence(p, q)))
    return total / len(batches)


def test_every_method_for_integers_keeps_a_model_nearer_to_itself_than_rounding_to_nearest(lm, inputs):
    plain = divergence(lm, quantised(lm.model, read_rules("int4-g32"))[0])
    for name in ("gptq", "awq", "imatrix"):
        assert divergence(lm, by(lm.model, "int4-g32", Calibrated(name, inputs))[0]) < plain, name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "recipe"), [("tiny-transformer", "int4-g32"), ("tiny-moe", "int4"), ("tiny-hybrid", "int4-g32")]
)
def test_calibration_beats_rounding_to_nearest_on_every_bundled_model(name, recipe):
    lm = minillm.load(name)
    found = (lm.quantize(one)[0].model for one in (recipe, f"gptq:{recipe}", f"awq:{recipe}"))
    plain, gptq, awq = (divergence(lm, model, 30) for model in found)
    assert gptq < plain
    assert awq < plain


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["q2_k", "q4_k"])
def test_importance_helps_the_types_of_gguf_files(recipe):
    lm = minillm.load("tiny-transformer")
    plain, weighed = (divergence(lm, lm.quantize(one)[0].model, 40) for one in (recipe, f"imatrix:{recipe}"))
    assert weighed < plain


def test_a_killed_run_goes_on_where_it_was_and_ends_with_the_same_bits(lm, inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "calibrated", lambda model, batches: (inputs for _ in batches))
    monkeypatch.setattr(factors, "POWERS", 3)
    name, recipe = "awq", "awq:int4-g32"
    (whole, changes), steps, found = lm.quantize(recipe, TEXTS), [], []

    def killed(what, done, of):
        steps.append((what, done, of))
        if (what, done) == ("rounding", 5):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lm.quantize(recipe, TEXTS, folder=tmp_path / "run", progress=killed)
    assert steps[0] == ("reading", 1, len(windows(lm.tokenizer, TEXTS, lm.config.context)))
    assert steps[-1] == ("rounding", 5, len(changes))
    find = METHODS[name].find
    counting = METHODS[name]._replace(find=lambda *given: found.append(given) or find(*given))
    monkeypatch.setitem(METHODS, name, counting)
    steps.clear()
    resumed, again = lm.quantize(recipe, TEXTS, folder=tmp_path / "run", progress=lambda *step: steps.append(step))
    assert same(whole.model, resumed.model)
    assert again == changes
    assert len(found) == len(changes) - 5
    assert {what for what, _, _ in steps} == {"rounding"}
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


def test_nothing_of_another_run_is_taken_from_a_folder(lm, inputs, tmp_path):
    w, place = np.ones((2, 96), np.float32), next(name for name in inputs if name.endswith("qkv"))
    kept, fresh = Calibrated("gptq", inputs, tmp_path), Calibrated("gptq", inputs)
    others = {place: dataclasses.replace(inputs[place], gram=2 * inputs[place].gram)}
    for matrix, recipe in itertools.product((w, 2 * w), ("int4", "int4-g32")):
        one = recipe_named(recipe)
        assert same(kept(place, matrix, one), fresh(place, matrix, one))
    Calibrated("imatrix", inputs, tmp_path)(place, w, recipe_named("int4"))
    Calibrated("gptq", others, tmp_path)(place, w, recipe_named("int4"))
    assert len(list(tmp_path.iterdir())) == 6


def test_a_matrix_without_inputs_is_rounded_to_nearest_and_said_to_be(lm, inputs):
    place = "blocks[0].qkv"
    some = {name: one for name, one in inputs.items() if name != place}
    model, changes = by(lm.model, "int4-g32", Calibrated("gptq", some))
    plain, _ = quantised(lm.model, read_rules("int4-g32"))
    assert [c.place for c in changes if c.remark] == [place]
    assert [c.remark for c in changes if c.remark] == ["rounded to nearest, as the text brought it no inputs"]
    said = "; 1 of 13 matrices otherwise, blocks[0].qkv: rounded to nearest, as the text brought it no inputs"
    assert summary("gptq:int4-g32", changes).endswith(said)
    assert same(model.blocks[0].qkv, plain.blocks[0].qkv)
    assert not same(model.blocks[0].out, plain.blocks[0].out)


def test_experts_that_saw_no_rows_are_rounded_to_nearest_and_named():
    rng = np.random.default_rng(0)
    stack, x = rng.normal(size=(3, 4, 32)).astype(np.float32), rng.normal(size=(3, 20, 32)).astype(np.float32)
    idle = Inputs(*(np.zeros_like(figure) for figure in vars(counted(x[1])).values()))
    inputs = {"up": stacked(counted(x[0]), idle, counted(x[2]))}
    for name in ("gptq", "awq", "smooth"):
        recipe = recipe_named("w8a8" if name == "smooth" else "int4")
        parts, factors, remark = Calibrated(name, inputs)("up", stack, recipe)
        nearest, _, _ = rounded("up", stack, recipe)
        assert remark == "rounded to nearest, as the text brought 1 of its 3 matrices (1) no inputs"
        different = [not np.array_equal(one, other) for one, other in zip(parts[0], nearest[0], strict=True)]
        assert different == [True, False, True]
        assert (factors is not None) == (name != "gptq")


def test_experts_are_calibrated_each_with_its_own_inputs():
    rng = np.random.default_rng(0)
    stack, x = rng.normal(size=(2, 4, 32)).astype(np.float32), rng.normal(size=(2, 50, 32)).astype(np.float32)
    x[0, :, :3] *= 20
    both = Calibrated("awq", {"up": stacked(*map(counted, x))})("up", stack, recipe_named("int4"))
    for e in range(2):
        alone = Calibrated("awq", {"up": counted(x[e])})("up", stack[e], recipe_named("int4"))
        assert same(jax.tree.map(lambda array: array[e], both[:2]), alone[:2])  # noqa: B023


@pytest.mark.slow
def test_matrices_that_never_multiply_as_such_are_named_in_real_families(tmp_path):
    """DeepSeek's kv_b is absorbed by its neighbours, and an embedding that is not tied is only read from."""
    tiny.unpacked("deepseek_v2_0", tmp_path)
    lm = minillm.load(tmp_path)
    tokens = np.random.default_rng(0).integers(0, lm.config.v, (2, 64))
    (inputs,) = calibrated(lm.model, iter([tokens]))
    _, changes = by(lm.model, "int4", Calibrated("gptq", inputs))
    assert [c.place for c in changes if c.remark] == ["embed", "blocks[0].kv_b", "blocks[2].kv_b"]


@pytest.mark.parametrize("figure", ["gram", "mean", "largest"])
def test_inputs_that_are_not_finite_are_reported_by_place(figure):
    x = np.ones((4, 32), np.float32)
    inputs = counted(x)
    getattr(inputs, figure).flat[0] = np.inf
    with pytest.raises(UserError, match=r"blocks\[3\].up: its inputs hold NaN or infinity"):
        Calibrated("awq", {"blocks[3].up": inputs})("blocks[3].up", x, recipe_named("int4"))


def test_second_moments_that_are_none_are_reported_by_place():
    inputs = dataclasses.replace(counted(np.ones((4, 2), np.float32)), gram=np.array([[1, 5], [5, 1]], np.float32))
    with pytest.raises(UserError, match="down: the second moments of its inputs are those of no numbers"):
        Calibrated("gptq", {"down": inputs})("down", np.ones((4, 2), np.float32), recipe_named("int8"))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("gtpq:int4", "method is 'gtpq', expected one of gptq, awq, smooth, imatrix before the colon"),
        ("gptq:q4_k", "gptq is asked for q4_k, expected integers"),
        ("awq:w8a8", "awq is asked for w8a8, expected a recipe that leaves x as it is"),
        ("smooth:int4", "smooth is asked for int4, expected one that rounds x too"),
        ("imatrix:q8_0", "imatrix is asked for q8_0, expected integers, or a GGUF type with a search"),
        ("awq:gptq:int4", "recipe is 'gptq:int4', expected one of"),
        ("int4,embed=awq:keep", "recipe is 'keep', expected one of"),
        ("awq:int5", "recipe is 'int5', expected one of"),
    ],
)
def test_a_method_and_a_recipe_that_do_not_go_together_are_refused(lm, recipe, message):
    with pytest.raises(UserError, match=message):
        lm.quantize(recipe)


def test_texts_that_would_change_nothing_are_refused(lm, tmp_path):
    with pytest.raises(UserError, match="recipe 'int4' looks at no text, expected METHOD:RECIPE or"):
        lm.quantize("int4", TEXTS)
    with pytest.raises(UserError, match="looks at no text"):
        lm.quantize("int4", folder=tmp_path)


def test_a_model_without_a_tokenizer_cannot_read():
    lm = minillm.init(minillm.load("tiny-draft").config)
    with pytest.raises(UserError, match="no tokenizer, so it cannot read the texts to calibrate with"):
        lm.quantize("gptq:int4")
