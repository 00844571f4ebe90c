"""The judge of recipes knows a whole one from a broken one; held-out texts are what they claim to be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm.texts import held_out
from weights.check import judge, longest_copy
from weights.data import is_held_out

RECIPES = [document.text for document in held_out("recipes")]


def test_every_held_out_recipe_is_whole_and_uses_all_it_lists():
    for text in RECIPES:
        verdict = judge(text, ended=True)
        assert verdict.well_formed, text
        assert verdict.used == verdict.listed >= 2


@given(text=st.sampled_from(RECIPES), data=st.data())
def test_a_recipe_that_stops_anywhere_is_not_well_formed(text, data):
    cut = data.draw(st.integers(0, len(text) - 1))
    assert not judge(text[:cut], ended=False).well_formed


@given(text=st.sampled_from(RECIPES), data=st.data())
def test_a_recipe_that_lacks_a_part_is_not_well_formed(text, data):
    lines = text.splitlines()
    needed = [i for i, line in enumerate(lines) if not line.startswith("- ") and line != lines[-1]]
    gone = data.draw(st.sampled_from(needed))
    assert not judge("\n".join(lines[:gone] + lines[gone + 1 :]), ended=True).well_formed


def test_an_ingredient_that_no_step_names_counts_against_it():
    text = "Recipe: Tea\n\nIngredients:\n- 200 ml water\n- 3 g salt\n\nSteps:\n1. Boil the water.\n2. Serve."
    assert judge(text, ended=True) == (True, 2, 1)


@pytest.mark.parametrize("source", ["recipes", "scripture"])
def test_the_samples_are_held_out_texts_and_none_twice(source):
    documents = held_out(source)
    assert all(is_held_out(document) for document in documents)
    assert len({document.text for document in documents}) == len(documents) > 50


def test_the_longest_copy_is_the_longest_run_of_words_of_one_document():
    learned = ["a b c d", "e f g"]
    assert longest_copy(["x b c d e", "f g"], learned) == 3
    assert longest_copy(["d e"], learned) == 1
    assert longest_copy(["x y"], learned) == 0
