"""Logits of SmolLM2 as transformers computes them, over 512 tokens: a wrong rotary embedding shows late."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from minillm.checkpoint.pull import MODELS, pulled

GOLDENS = Path(__file__).parents[2] / "goldens"

# The largest difference of a logit; on this input transformers in float32 is 8e-5 away from itself in float64.
SMOLLM2 = 1e-3


LENGTH = 512  # of the 915 tokens that there are: a power of two, so that none is padded


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDENS / "smollm2_logits.npz") as file:
        stored = dict(file)
    by_token = {
        name: stored[name][:LENGTH] for name in ("tokens", "ids", "logits", "projections", "logsumexp", "argmax")
    }
    return stored | by_token


@pytest.fixture(scope="module")
def smollm2_logits(smollm2, golden):
    return smollm2.logits(golden["tokens"][None])[0]


def test_goldens_are_of_the_model_that_is_pulled(golden):
    assert json.loads(str(golden["provenance"]))["gguf_sha256"] == MODELS["smollm2-135m"].sha256


def test_smollm2_stored_logits_agree(smollm2_logits, golden):
    ours = np.take_along_axis(smollm2_logits, golden["ids"], axis=1)
    assert np.abs(ours - golden["logits"]).max() <= SMOLLM2


def test_smollm2_gives_every_logit_its_place(smollm2_logits, golden):
    signs = 2.0 * np.unpackbits(golden["signs"][:, None], axis=1) - 1
    ours = smollm2_logits.astype(np.float64) @ signs / np.sqrt(len(signs))
    assert np.abs(ours - golden["projections"]).max() <= SMOLLM2


def test_smollm2_probabilities_have_the_same_sum(smollm2_logits, golden):
    ours = np.logaddexp.reduce(smollm2_logits.astype(np.float64), axis=1)
    assert np.abs(ours - golden["logsumexp"]).max() <= SMOLLM2


def test_smollm2_prefers_the_same_token_everywhere(smollm2_logits, golden):
    np.testing.assert_array_equal(smollm2_logits.argmax(axis=1), golden["argmax"])


@pytest.mark.oracle
@pytest.mark.parametrize("seed", [9, 18])  # orders in which the best two logits are never closer than 3e-3
def test_every_smollm2_logit_agrees_live_on_shuffled_lines(smollm2, seed):
    script = runpy.run_path(str(GOLDENS / "make_smollm2_logits.py"))
    lines = script["TEXT"].splitlines(keepends=True)
    np.random.default_rng(seed).shuffle(lines)
    tokens = np.array(smollm2.tokenizer.encode("".join(lines)))
    reference = script["reference_logits"](script["reference_model"](pulled("smollm2-135m")), tokens)
    ours = smollm2.logits(tokens[None])[0]
    assert np.abs(ours - reference).max() <= SMOLLM2
    np.testing.assert_array_equal(ours.argmax(axis=1), reference.argmax(axis=1))
