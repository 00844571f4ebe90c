"""Outside of exact mode a token may differ, but only where two were almost equally likely."""

import numpy as np
import pytest

import minillm
from bench import divergence

pytestmark = pytest.mark.usefixtures("quick_programs")


@pytest.fixture(scope="module")
def lm():
    return minillm.load("tiny-draft")


def test_every_difference_from_plain_decoding_is_a_near_tie(lm):
    prompts = [lm.tokenizer.encode(f"Recipe: {name} Soup\n") for name in ("Tomato", "Pea")]
    expected = divergence.plain(lm, prompts, 60)
    for way in divergence.WAYS.values():
        found = divergence.divergences(lm, prompts, expected, way(lm, prompts, 60))
        assert all(one["gap"] <= one["bound"] for one in found)


def test_a_difference_that_is_no_near_tie_is_seen(lm):
    prompt = lm.tokenizer.encode("Recipe: Tomato Soup\n")
    expected = divergence.plain(lm, [prompt], 8)
    wrong = [[*expected[0][:5], (expected[0][5] + 1) % lm.config.v, *expected[0][6:]]]
    (found,) = divergence.divergences(lm, [prompt], expected, wrong)
    logits = lm.logits([[*prompt, *expected[0][:5]]])[0, -1]
    assert found["place"] == 5
    assert np.isclose(found["gap"], logits.max() - logits[wrong[0][5]])
    assert found["gap"] > found["bound"]


@pytest.mark.parametrize("cut", [[], [divergence.END]], ids=["nothing", "an end"])
def test_a_text_that_ends_too_soon_is_seen(lm, cut):
    prompt = lm.tokenizer.encode("Recipe: Tomato Soup\n")
    expected = divergence.plain(lm, [prompt], 8)
    (found,) = divergence.divergences(lm, [prompt], expected, [expected[0][:4] + cut])
    assert found["place"] == 4
    assert found["gap"] > found["bound"]
