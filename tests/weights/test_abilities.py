"""What the bundled models can do."""

import numpy as np
import pytest

import minillm
from minillm.folders import bundled_models
from minillm.texts import held_out
from weights.check import acceptance, judge, recipe
from weights.experts import expert_use

pytestmark = pytest.mark.usefixtures("optimised_programs")

MANY = [pytest.param(name, 40, marks=pytest.mark.slow) for name in bundled_models()]


@pytest.mark.parametrize(("name", "some"), [("tiny-hybrid", 4), *MANY])
def test_most_recipes_for_unseen_titles_are_well_formed(name, some):
    lm, unseen = minillm.load(name), held_out("recipes")[:some]
    verdicts = [judge(*recipe(lm, document.title, seed)) for seed, document in enumerate(unseen)]
    assert sum(verdict.well_formed for verdict in verdicts) >= 0.75 * some


@pytest.mark.slow
def test_no_expert_is_dead_and_experts_differ_by_kind_of_text():
    use = expert_use(minillm.load("tiny-moe"))
    assert np.mean([*use.values()], axis=0).min() > 0.02
    assert np.abs(use["recipes"] - use["scripture"]).max() > 0.05


def test_every_draft_of_a_model_for_itself_is_accepted_and_most_of_the_draft_models():
    target = minillm.load("tiny-transformer")
    assert acceptance(target, target, samples=1) == pytest.approx(1, abs=1e-6)
    assert acceptance(minillm.load("tiny-draft"), target, samples=3) > 0.5
