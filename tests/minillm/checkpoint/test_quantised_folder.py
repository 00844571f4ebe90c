"""A quantised model that is written loads again to the bit, and a folder that is not whole says what is wrong."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import minillm
from minillm.checkpoint.jsonfile import read_json
from minillm.checkpoint.loader import open_checkpoint
from minillm.checkpoint.quantised_folder import KEY, write_quantised
from minillm.errors import UserError
from minillm.folders import bundled_models
from minillm.quant.quantised import quantised, rounded
from minillm.quant.rules import read_rules


def written(name: str, recipe: str, folder, find=lambda rule: rounded):
    """A bundled model quantised and written -> the model in memory."""
    source = bundled_models()[name]
    model, changes = quantised(minillm.load(name).model, read_rules(recipe), find)
    write_quantised(folder, model, changes, read_json(source / "config.json"), {"notes.txt": b"hello"})
    return model


def scaled(rule):
    """Rounding behind factors, as AWQ's."""
    factors = np.float32(2.0) ** (np.arange(4096) % 5)

    def find(place, matrix, recipe):
        s = factors[: matrix.shape[-1]]
        parts, _, _ = rounded(place, matrix * s, recipe)
        return parts, np.broadcast_to(1 / s, (*matrix.shape[:-2], matrix.shape[-1])), None

    return find


@pytest.mark.parametrize(
    ("name", "recipe", "find"),
    [
        ("tiny-moe", "q4_0,embed=q8_0,down=w8a8,blocks[0].out=keep", lambda rule: rounded),
        ("tiny-hybrid", "int4-g32-affine,up=nvfp4,qkv=mxfp4-a4", scaled),
        ("tiny-draft", "int8", lambda rule: rounded),
    ],
)
def test_what_is_written_loads_again_to_the_bit(name, recipe, find, tmp_path):
    model = written(name, recipe, tmp_path / "model", find)
    lm = minillm.load(tmp_path / "model")
    assert jax.tree.structure(lm.model) == jax.tree.structure(model)
    for one, other in zip(jax.tree.leaves(lm.model), jax.tree.leaves(model), strict=True):
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), lm.shapes) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), model
    )
    assert (tmp_path / "model" / "notes.txt").read_bytes() == b"hello"


def test_a_folder_is_as_small_as_its_bits_say(tmp_path):
    written("tiny-transformer", "int4-g32", tmp_path / "model")
    size = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert size < 0.33 * (bundled_models()["tiny-transformer"] / "model.safetensors").stat().st_size


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good") / "model"
    written("tiny-draft", "int4-g32", folder)
    return folder


@pytest.fixture
def broken(good, tmp_path):
    shutil.copytree(good, tmp_path / "model")
    return tmp_path / "model"


def with_weights(folder, change) -> None:
    """Change what config.json says of the weights."""
    values = json.loads((folder / "config.json").read_text())
    change(values[KEY]["weights"])
    (folder / "config.json").write_text(json.dumps(values))


def with_tensors(folder, change) -> None:
    """Change the tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


QKV, CODES = "blocks[0].qkv", "blocks[0].qkv.parts[0]"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.update({QKV: {"recipe": "int5"}}), "says {.recipe.: .int5.} of .*, expected a recipe"),
        (
            lambda w: w.update({QKV: "int4-g32"}),
            r"says 'int4-g32' of blocks\[0\].qkv, expected a recipe",
        ),
        (lambda w: w.update({"norm": {"recipe": "int8"}}), "speaks of 'norm', which the model does not have"),
        (lambda w: w.update({"norm.weight": {"recipe": "int8"}}), "of norm.weight, expected a recipe for a matrix"),
        (lambda w: w.pop(QKV), r"tensor blocks\[0\].qkv.array is missing"),
        (
            lambda w: w.update({QKV: {"recipe": "q4_k"}}),
            "rows of 96, expected a multiple of 256 for q4_k",
        ),
        (
            lambda w: w.update({QKV: {"recipe": "int4"}}),
            r"is \[288, 3\] of F32, expected \[288, 1\] of",
        ),
    ],
)
def test_words_that_do_not_fit_the_tensors_are_named(broken, change, message):
    with_weights(broken, change)
    with pytest.raises(UserError, match=message):
        open_checkpoint(broken).shapes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(CODES), r"tensor blocks\[0\].qkv.parts\[0\] is missing"),
        (lambda t: t.update(more=t[CODES]), "tensor more is not part of the model"),
        (lambda t: t.update({CODES: t[CODES][:-1]}), r"is \[287, 48\] of U8, expected \[288, 48\] of U8"),
        (lambda t: t.update({CODES: t[CODES].view(np.int8)}), r"is \[288, 48\] of I8, expected \[288, 48\] of U8"),
    ],
)
def test_tensors_that_do_not_fit_are_named(broken, change, message):
    with_tensors(broken, change)
    with pytest.raises(UserError, match=message):
        open_checkpoint(broken).shapes()


def test_nothing_is_written_over(good):
    with pytest.raises(UserError, match="is there already"):
        written("tiny-draft", "int8", good)


def test_a_config_that_names_no_weights_is_not_taken_for_a_plain_model(broken):
    values = json.loads((broken / "config.json").read_text())
    values[KEY]["weights"] = []
    (broken / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="quantization_config has no weights by place"):
        open_checkpoint(broken)
