"""Bits go where they help most, and no more of them than were given."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import QUICK
from hypothesis import given, settings
from hypothesis import strategies as st

import minillm
from minillm.compress import auto, calibration
from minillm.compress.auto import LADDER, Rung, ladder, spread
from minillm.errors import UserError
from minillm.evaluate import quality
from minillm.quant import Dense
from minillm.quant.quantised import bits_a_weight
from minillm.quant.recipes import recipe_named
from minillm.texts import evaluation

RECIPES = [recipe_named(name) for name in LADDER]


@st.composite
def ladders(draw) -> dict[str, list[Rung]]:
    """Costs that fall by less and less with each bit, as they do."""
    found = {}
    for place in "abcd"[: draw(st.integers(1, 4))]:
        n, scale = draw(st.integers(1, 5)), draw(st.floats(0.01, 100))
        bits = np.cumsum(draw(st.lists(st.integers(1, 3), min_size=n, max_size=n)))
        found[place] = [Rung(r, float(b), scale * 4.0**-b) for r, b in zip(RECIPES, bits, strict=False)]
    return found


@given(given=ladders(), more=st.integers(0, 12))
@settings(max_examples=60)
def test_the_budget_is_kept_and_no_single_change_that_fits_it_would_help(given, more):
    budget = sum(rungs[0].bits for rungs in given.values()) + more
    chosen = spread(given, budget)
    spent, cost = (sum(getattr(rung, name) for rung in chosen.values()) for name in ("bits", "cost"))
    assert spent <= budget
    for place, rungs in given.items():
        for other in rungs:
            if spent - chosen[place].bits + other.bits <= budget:
                assert cost - chosen[place].cost + other.cost >= cost - 1e-12


@given(given=ladders(), more=st.integers(0, 12))
@settings(max_examples=40)
def test_what_is_chosen_costs_little_more_than_the_best_there_is(given, more):
    budget = sum(rungs[0].bits for rungs in given.values()) + more
    fitting = [c for c in itertools.product(*given.values()) if sum(rung.bits for rung in c) <= budget]
    best = min(sum(rung.cost for rung in choice) for choice in fitting)
    start = sum(rungs[0].cost for rungs in given.values())
    found = sum(rung.cost for rung in spread(given, budget).values())
    assert start - found >= 0.5 * (start - best) - 1e-9


@pytest.mark.parametrize(("columns", "first"), [(256, "q2_k"), (96, "iq4_nl"), (40, None)])
def test_a_ladder_has_the_recipes_that_rows_fit_and_costs_as_measured(columns, first):
    weight = Dense(jnp.asarray(np.random.default_rng(0).normal(size=(5, columns)), jnp.float32), True)
    rungs = ladder(weight, False, lambda decoded: float(jnp.sum((decoded.dense() - weight.dense()) ** 2)))
    assert [rung.recipe.name for rung in rungs[:1]] == ([first] if first else [])
    for rung in rungs:
        decoded = rung.recipe.storage.decode(
            tuple(map(jnp.asarray, rung.recipe.storage.encode(np.asarray(weight.array))))
        )
        assert rung.cost == pytest.approx(float(jnp.sum((decoded - weight.array) ** 2)), rel=1e-4)
    assert [rung.bits for rung in rungs] == sorted(rung.bits for rung in rungs)


@pytest.fixture
def quick(monkeypatch):
    """Unoptimised programs."""
    for module, name in ((calibration, "read"), (auto, "divergence")):
        monkeypatch.setattr(module, name, jax.jit(getattr(module, name).__wrapped__, compiler_options=QUICK))
    monkeypatch.setattr(auto, "read", calibration.read)


def divergence(lm, recipe: str) -> tuple[float, float]:
    """Bits a weight, and how far the model is from itself."""
    other, changes = lm.quantize(recipe)
    found = quality(other.model, lm.tokenizer, evaluation()[:30], 128, lm.model)
    return bits_a_weight(changes), found["kld_mean"].value


@pytest.mark.usefixtures("quick")
def test_no_more_bits_are_used_than_given_and_more_of_them_help():
    lm = minillm.load("tiny-draft")
    few, many = (divergence(lm, recipe) for recipe in ("auto:5", "auto:6.5"))
    assert 4.9 < few[0] <= 5 < 6.4 < many[0] <= 6.5
    assert many[1] < 0.5 * few[1]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "recipe"), [("tiny-transformer", "q4_k"), ("tiny-moe", "q3_k")])
def test_a_model_is_nearer_to_itself_than_with_one_recipe_of_as_many_bits(name, recipe):
    lm = minillm.load(name)
    bits, uniform = divergence(lm, f"{recipe}")
    mixed_bits, mixed = divergence(lm, f"auto:{recipe_bits(recipe)}")
    assert mixed_bits <= bits
    assert mixed < uniform


def recipe_bits(recipe: str) -> float:
    """Bits a number."""
    form = recipe_named(recipe).storage
    return 8 * form.encode(np.zeros((1, 256), np.float32))[0].nbytes / 256


def test_fewer_bits_than_there_are_recipes_for_are_refused_with_the_least_there_is():
    with pytest.raises(UserError, match=r"auto:1.5 is less than its coarsest recipes take, \d\.\d\d bits a weight"):
        minillm.load("tiny-draft").quantize("auto:1.5")
