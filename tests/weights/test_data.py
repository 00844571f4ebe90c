"""Texts become documents as the models are to learn them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weights.data import PART, Document, from_recipe, is_held_out, parts, tidy, uses

RECIPE = {
    "name": {"en": "Apple Porridge"},
    "recipe": {"en": "Step 1. Boil 200 ml of water – slowly. Step 2. Add the apples and serve."},
    "ingredients_details": {
        "en": [
            {"amount": 200, "unit": "ml", "name": "Water"},
            {"amount": 1.5, "unit": "pcs", "name": "Apple"},
            {"amount": 2, "unit": "g", "name": "Cinnamon"},
        ]
    },
}


def test_a_recipe_is_a_title_what_is_used_and_numbered_steps():
    document = from_recipe(RECIPE)
    assert document is not None
    assert document.text == (
        "Recipe: Apple Porridge\n\nIngredients:\n- 200 ml water\n- 1.5 pcs apple\n\n"
        "Steps:\n1. Boil 200 ml of water - slowly.\n2. Add the apples and serve."
    )


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": {"ru": "Шаг 1."}},
        {"recipe": {"en": "Step 1. Boil the water and the apple."}},
        {"name": {"en": "Овсянка"}},
        {"ingredients_details": {"en": []}},
    ],
)
def test_what_is_half_a_recipe_is_left_out(change):
    assert from_recipe(RECIPE | change) is None


@pytest.mark.parametrize(
    ("steps", "ingredient", "used"),
    [
        ("Chop the tomatoes.", "Tomato", True),
        ("Chop the tomato.", "Tomatoes", True),
        ("Add berries.", "Berry", False),  # the rule is simple: singulars of -ies are cut to their stem
        ("Add a berry.", "Berries", True),
        ("Fry in oil.", "Olive oil", True),
        ("Boil it.", "Oil", False),
        ("Add pepper.", "Salt", False),
    ],
)
def test_an_ingredient_is_used_where_a_step_names_it(steps, ingredient, used):
    assert uses(steps, ingredient) is used


@given(
    st.lists(
        st.text("abc ,", min_size=1, max_size=300).map(lambda text: f"{text.strip()}."), min_size=1, max_size=40
    )
)
def test_parts_are_whole_sentences_and_all_of_them(sentences):
    text = tidy(" ".join(sentences))
    found = list(parts(text))
    assert " ".join(found) == text
    assert all(len(part) <= PART + 400 for part in found)


def test_all_parts_of_a_chapter_and_all_recipes_of_a_title_are_held_out_together():
    for i in range(200):
        one, other = (Document("scripture", f"chapter {i}", text) for text in ("a", "b"))
        assert is_held_out(one) == is_held_out(other)
        assert is_held_out(Document("recipes", f"Pie {i}", "")) == is_held_out(
            Document("recipes", f"PIE  {i}!", "")
        )
    share = sum(is_held_out(Document("recipes", f"Pie {i}", "")) for i in range(4000)) / 4000
    assert 0.03 < share < 0.07
