"""Bits go where they help most, and no more of them than were given."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import QUICK
from hypothesis import given, settings
from hypothesis import strategies as st

import minillm
from minillm.compress import auto, calibration
from minillm.compress.auto import LADDER, Rung, auto_rules, ladder, spread
from minillm.errors import UserError
from minillm.evaluate import quality
from minillm.quant import Dense
from minillm.quant.quantised import bits_a_weight, quantised
from minillm.quant.recipes import recipe_named
from minillm.quant.rules import read_rules
from minillm.texts import calibration as texts_to_calibrate
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
        storage = rung.recipe.storage
        [data] = storage.encode(np.asarray(weight.array))
        decoded = auto.decoded(data[None], storage)[0]
        assert rung.cost == pytest.approx(float(jnp.sum((decoded - weight.array) ** 2)), rel=1e-4)
    assert [rung.bits for rung in rungs] == sorted(rung.bits for rung in rungs)


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """Unoptimised programs."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, static in (
            (calibration, "read", ()),
            (auto, "divergence", ()),
            (auto, "decoded", "storage"),
        ):
            function = getattr(module, name).__wrapped__
            patch.setattr(module, name, jax.jit(function, compiler_options=QUICK, static_argnames=static))
        patch.setattr(auto, "read", calibration.read)
        yield


# Three of its five matrices are 192 rows of 64 numbers, which share programs.
TOY: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 192,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def toy():
    return minillm.init(TOY).model


def drawn(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 192, (4, 64)).astype(np.int32)


def test_no_more_bits_are_used_than_given_and_more_of_them_help(toy):
    found, other = [], drawn(2)
    for bits in (5, 6.5):
        rules = auto_rules(toy, [drawn(0), drawn(1)], bits)
        model, changes = quantised(toy, rules)
        kld = auto.divergence(calibration.read(toy, other), calibration.read(model, other))
        found.append((bits_a_weight(changes), float(kld)))
    few, many = found
    assert 4.7 < few[0] <= 5 < 6.2 < many[0] <= 6.5
    assert many[1] < 0.5 * few[1]


def test_fewer_bits_than_there_are_recipes_for_are_refused_with_the_least_there_is(toy):
    with pytest.raises(UserError, match=r"auto:1.5 is less than its coarsest recipes take, 4.50 bits a weight"):
        auto_rules(toy, [drawn(0)], 1.5)


def test_a_user_asks_by_name_and_the_text_is_the_one_that_was_given(monkeypatch):
    asked = []

    def rules(model, batches, bits, progress):
        asked.append((bits, len(batches)))
        return read_rules("q8_0")

    monkeypatch.setattr("minillm.compress.quantise.auto_rules", rules)
    lm, texts = minillm.load("tiny-draft"), texts_to_calibrate()[:16]
    assert lm.tokenizer is not None
    _, changes = lm.quantize("auto:5.25", texts)
    assert asked == [(5.25, len(calibration.windows(lm.tokenizer, texts, 512)))]
    assert {change.recipe for change in changes} == {"q8_0"}


def divergence(lm, recipe: str) -> tuple[float, float]:
    """Bits a weight, and how far the model is from itself."""
    other, changes = lm.quantize(recipe)
    found = quality(other.model, lm.tokenizer, evaluation()[:30], 128, lm.model)
    return bits_a_weight(changes), found["kld_mean"].value


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
