"""A success is a recipe that a program can verify, and failures cost as much."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minillm
from bench import success
from bench.success import Written

STEPS = "\n\nSteps:\n1. Cut the tomatoes.\n2. Add the salt and cook."
LISTED = "Recipe: Soup\n\nIngredients:\n- 200 g tomatoes\n- 3 g salt"
COUNTS = st.lists(st.tuples(st.integers(0, 12), st.floats(0.1, 100)), min_size=2, max_size=8)


def test_a_recipe_succeeds_if_it_is_whole_and_uses_what_it_lists():
    assert success.verified(Written(LISTED + STEPS, True, 9))
    assert not success.verified(Written(LISTED + STEPS, False, 9))
    assert not success.verified(Written(LISTED + "\n- 1 g pepper" + STEPS, True, 9))
    assert not success.verified(Written(LISTED + STEPS.replace("2.", "3."), True, 9))


@settings(max_examples=30)
@given(st.floats(0.1, 1e4), st.integers(1, 100), st.floats(0.01, 50))
def test_cost_is_the_price_of_all_time_by_success(seconds, successes, price):
    found = success.cost(seconds, successes, price)
    assert found is not None
    assert abs(found - 1000 * price * seconds / 3600 / successes) <= 1e-3
    assert success.cost(seconds, 0, price) is None


@settings(max_examples=20)
@given(COUNTS, st.floats(0.25, 4))
def test_twice_as_fast_is_twice_the_successes(played, factor):
    counts, seconds = map(np.array, zip(*[(n + 1, s) for n, s in played], strict=True))
    found = success.together(counts, seconds / factor, counts, seconds)
    low, high = found["interval_95"]
    assert low <= found["median"] <= high
    assert np.allclose([low, found["median"], high], factor, atol=1e-3)


def test_rounds_have_titles_of_their_own():
    titles = [success.titles_of(number) for number in range(10)]
    assert all(len(one) == success.GROUP for one in titles)
    assert len({seed for one in titles for seed in one}) == 10 * success.GROUP


def test_batches_keep_the_order_of_titles(monkeypatch):
    asked = []

    def at_once(lm, titles):
        asked.append(len(titles))
        return [Written(title, True, 1) for title in titles.values()]

    monkeypatch.setattr(success, "at_once", at_once)
    titles = success.titles_of(0)
    lm = minillm.load("tiny-draft")
    assert [one.text for one in success.in_batches(lm, titles)] == [*titles.values()]
    assert max(asked) == success.BATCH
    assert len(asked) > 1


@pytest.mark.usefixtures("quick_programs")
def test_every_way_writes_a_recipe_for_every_title(monkeypatch):
    monkeypatch.setattr(success, "LONGEST", 12)
    monkeypatch.setattr(success, "wait_for_quiet", lambda: None)
    monkeypatch.setattr(success, "GROUP", 2)
    lm = minillm.load("tiny-draft")
    ways = {
        success.PLAIN: lambda titles: success.alone(lm, None, titles),
        success.CONTINUOUS: lambda titles: success.at_once(lm, titles),
        success.STATIC: lambda titles: success.in_batches(lm, titles),
    }
    assert not success.measure(ways, rounds=1, price=1.0)["successes_a_second"]  # what is cut off is no recipe
    monkeypatch.setattr(success, "verified", lambda one: one.tokens > 0)
    report = success.measure(ways, rounds=1, price=1.0)
    assert report["successes_a_second"].keys() == {f"{name} over plain" for name in ways if name != success.PLAIN}
    assert all(one["successes"] == 2 for one in report["ways"].values())
    assert all(one["of"] == 2 for one in report["ways"].values())
    assert report["tokens_a_second"].keys() == {
        f"{success.STATIC} over plain",
        f"{success.CONTINUOUS} over plain",
        f"{success.CONTINUOUS} over {success.STATIC}",
    }
    assert len(success.table_of(report)["rows"]) == 3
