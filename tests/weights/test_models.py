"""The bundled models are what their cards say."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import minillm
import weights.check
from minillm.folders import bundled_models
from minillm.texts import held_out
from weights.check import bits_per_byte

MODELS = bundled_models()
LARGEST = {"tiny-moe": 24e6}  # bytes; the others 12e6
TRANSFORMERS_KNOWS = [name for name in ("tiny-transformer", "tiny-moe", "tiny-mamba") if name in MODELS]


@pytest.fixture(scope="module", params=MODELS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def lm(name):
    return minillm.load(name)


def test_a_model_is_small_and_has_a_card_and_a_curve(name):
    files = {file.name: file.stat().st_size for file in MODELS[name].iterdir()}
    assert files.keys() >= {"config.json", "model.safetensors", "tokenizer.model", "README.md", "loss.png"}
    assert sum(files.values()) <= LARGEST.get(name, 12e6)


def test_the_table_of_all_models_says_what_their_cards_say():
    table = Path(weights.check.__file__).with_name("README.md").read_text()
    for name, folder in MODELS.items():
        card = (folder / "README.md").read_text()
        (row,) = re.findall(rf"^\| \[{name}\].*", table, re.M)
        cells = [cell.strip() for cell in row.split("|")[2:-1]]
        assert f"| parameters | {cells[0]} (" in card
        assert f"recipes {cells[1]}, scripture {cells[2]} |" in card
        assert f"{cells[3]} well formed, {cells[4]} of listed ingredients used" in card


def test_all_together_are_small():
    assert sum(file.stat().st_size for folder in MODELS.values() for file in folder.iterdir()) <= 60e6


def test_matrices_can_be_quantised_in_blocks_of_256(name):
    """All but those of the draft model, and Mamba's projection of dt."""
    with safe_open(MODELS[name] / "model.safetensors", "numpy") as file:
        shapes = {tensor: file.get_slice(tensor).get_shape() for tensor in file.keys()}  # noqa: SIM118  (not a dict)
    odd = {
        t
        for t, shape in shapes.items()
        if len(shape) == 2 and shape[1] % 256 and "dt_proj" not in t and "A_log" not in t
    }
    assert not odd or name == "tiny-draft"


MEASURED = [
    pytest.param(name, source, marks=() if (name, source) == ("tiny-draft", "recipes") else pytest.mark.slow)
    for name in MODELS
    for source in ("recipes", "scripture")
]


@pytest.mark.parametrize(("name", "source"), MEASURED)
def test_the_bits_per_byte_are_those_of_the_card(name, source):
    card = (MODELS[name] / "README.md").read_text()
    (said,) = re.findall(rf"\| held-out bits per byte \|.*{source} (\d\.\d{{3}})", card)
    assert abs(bits_per_byte(minillm.load(name), held_out(source)) - float(said)) < 0.002


def test_its_tokenizer_gives_back_the_held_out_texts(lm):
    for document in (*held_out("recipes")[:20], *held_out("scripture")[:5]):
        assert lm.tokenizer.decode(lm.tokenizer.encode(document.text, special=False)) == document.text


@pytest.mark.oracle
@pytest.mark.parametrize("name", TRANSFORMERS_KNOWS)
def test_transformers_computes_the_same_logits_live(name):
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    lm = minillm.load(name)
    assert lm.tokenizer is not None
    tokens = np.array([lm.tokenizer.encode(held_out("recipes")[0].text)])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(MODELS[name], dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits.numpy()
    assert np.abs(lm.logits(tokens) - expected).max() <= 1e-4


def test_settings_are_those_of_the_recipe(name):
    from weights.train import RECIPES

    assert json.loads((MODELS[name] / "config.json").read_text()) == RECIPES[name].config
