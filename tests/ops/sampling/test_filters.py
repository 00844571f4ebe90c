from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import assert_within, unit

from minillm import ops

B, V = 4, 33
LARGEST = 64.0  # of the logits drawn here

# How far p may be off, relatively, for the rounding of float32. A probability's logit is rounded when the
# largest is subtracted, which weighs at most ln(v) units on average, then exp, sum and division cost a few;
# adding up v of them costs v. Comparing logit with max + log(p) costs LARGEST units for the sum and twice
# -ln(p) < 10 for the logarithm. Both stay below 128 units.
SLACK = 128 * unit("float32")


class Filter(NamedTuple):
    """A filter, its definition, what its option may be, and the least and most it may do near a tie."""

    keep: Callable
    ref: Callable
    options: st.SearchStrategy[np.ndarray]
    grows: bool  # whether a larger option keeps more
    slack: float


def per_row(values: st.SearchStrategy, dtype) -> st.SearchStrategy[np.ndarray]:
    return st.lists(values, min_size=B, max_size=B).map(lambda row: np.array(row, dtype))


shares = per_row(st.one_of(st.floats(2**-13, 1, width=32), st.sampled_from([0.25, 0.5, 0.9, 1.0])), np.float32)
FILTERS = {
    "top_k": Filter(
        jax.jit(ops.keep_top_k), ops.keep_top_k_ref, per_row(st.integers(1, 2 * V), np.int32), True, 0.0
    ),
    "top_p": Filter(jax.jit(ops.keep_top_p), ops.keep_top_p_ref, shares, True, SLACK),
    "min_p": Filter(jax.jit(ops.keep_min_p), ops.keep_min_p_ref, shares, False, SLACK),
}
every_filter = pytest.mark.parametrize("filter", FILTERS.values(), ids=FILTERS)


@st.composite
def logits(draw) -> np.ndarray:
    """Rows of any spread; some of whole numbers, so that there are ties (0 and -0 too), some partly -inf."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.normal(size=(B, V)) * draw(st.sampled_from([0.0, 1.0, 3.0, 15.0]))
    x = np.round(x) if draw(st.booleans()) else x
    x[:, 1:][rng.random((B, V - 1)) < draw(st.sampled_from([0, 0.5, 1]))] = -np.inf
    return rng.permuted(np.clip(x, -np.inf, LARGEST).astype(np.float32), axis=1)


def kept(y) -> np.ndarray:
    return np.asarray(y) > -np.inf


@every_filter
@settings(max_examples=50)
@given(data=st.data(), x=logits())
def test_a_filter_is_its_definition(filter, data, x):
    option = data.draw(filter.options)
    y = np.asarray(filter.keep(x, option))
    near = [kept(filter.ref(x, option * side)) for side in (1 - filter.slack, 1 + filter.slack)]
    assert y.dtype == np.float32
    assert np.array_equal(y, np.where(kept(y), x, -np.inf))
    assert np.all((near[0] & near[1]) <= kept(y))
    assert np.all(kept(y) <= (near[0] | near[1]))


@every_filter
@settings(max_examples=50)
@given(data=st.data(), x=logits())
def test_equal_logits_share_one_fate_and_the_largest_stay(filter, data, x):
    keep = kept(filter.keep(x, data.draw(filter.options)))
    for row in range(B):
        assert keep[row, x[row] == x[row].max()].all()
        least = x[row, keep[row]].min()
        assert np.array_equal(keep[row], x[row] >= least) or least == -np.inf


@every_filter
@settings(max_examples=25)
@given(data=st.data(), x=logits())
def test_the_order_of_the_vocabulary_does_not_matter(filter, data, x):
    option, order = data.draw(filter.options), data.draw(st.permutations(range(V)))
    # Where rounding may decide either way, it may do so differently for another order of summation.
    near = [kept(filter.ref(x, option * side)) for side in (1 - filter.slack, 1 + filter.slack)]
    clear = np.all(near[0] == near[1], axis=1)
    there, here = (kept(z)[clear] for z in (filter.keep(x[:, order], option), filter.keep(x, option)))
    assert np.array_equal(there, here[:, order])


@every_filter
@settings(max_examples=25)
@given(data=st.data(), x=logits())
def test_a_looser_option_keeps_a_superset(filter, data, x):
    a, b = data.draw(filter.options), data.draw(filter.options)
    loose, tight = (np.maximum(a, b), np.minimum(a, b)) if filter.grows else (np.minimum(a, b), np.maximum(a, b))
    assert np.all(kept(filter.keep(x, tight)) <= kept(filter.keep(x, loose)))


@settings(max_examples=25)
@given(x=logits())
def test_the_loosest_options_keep_everything(x):
    assert np.array_equal(FILTERS["top_k"].keep(x, np.array([V, V + 1, 2 * V, 2**31 - 1], np.int32)), x)
    assert np.array_equal(FILTERS["min_p"].keep(x, np.zeros(B, np.float32)), x)
    near = np.clip(x, -3, 3)  # no probability is so small that adding it to the rest would be lost in rounding
    assert np.array_equal(FILTERS["top_p"].keep(near, np.ones(B, np.float32)), near)


@settings(max_examples=25)
@given(x=logits())
def test_the_tightest_options_keep_only_the_likeliest(x):
    likeliest = x == x.max(axis=1, keepdims=True)
    assert np.array_equal(kept(FILTERS["top_k"].keep(x, np.ones(B, np.int32))), likeliest)
    assert np.array_equal(kept(FILTERS["top_p"].keep(x, np.full(B, 1e-6, np.float32))), likeliest)
    assert np.array_equal(kept(FILTERS["min_p"].keep(x, np.ones(B, np.float32))), likeliest)


def test_a_nucleus_that_reaches_p_exactly_is_full():
    """In float32 token 2 has probability 1/2 and four others 1/8, sums included, so that >= and > differ."""
    x = np.full((B, V), -np.inf, np.float32)
    x[:, 2], x[:, [5, 6, 20, 30]] = np.log(np.float32(4)), 0
    few = kept(FILTERS["top_p"].keep(x, np.array([0.4, 0.5, 0.51, 1], np.float32)))
    assert [row.sum() for row in few] == [1, 1, 5, 5]


def test_top_k_tells_neighbouring_floats_apart():
    steps = np.arange(V, dtype=np.int32)
    starts = np.array([1, -1, 2 - V * 2**-24, 1e30], np.float32)  # the third crosses a power of two
    x = (starts[:, None].view(np.int32) + steps).view(np.float32)
    few = kept(FILTERS["top_k"].keep(x, np.array([1, 7, V // 2, V - 1], np.int32)))
    assert list(few.sum(axis=1)) == [1, 7, V // 2, V - 1]


@settings(max_examples=25)
@given(x=logits(), temperature=per_row(st.floats(2**-6, 8, width=32), np.float32))
def test_temperature_divides(x, temperature):
    ideal = ops.scale_temperature_ref(x, temperature)
    assert_within(jax.jit(ops.scale_temperature)(x, temperature), ideal, 2 * unit("float32") * np.abs(ideal))


@settings(max_examples=25)
@given(x=logits(), seed=st.integers(0, 2**32 - 1), penalty=per_row(st.floats(0.5, 2, width=32), np.float32))
def test_repetition_shrinks_what_was_seen(x, seed, penalty):
    seen = np.random.default_rng(seed).random((B, V)) < 0.5
    y = np.asarray(jax.jit(ops.penalise_repetition)(x, seen, penalty))
    ideal = ops.penalise_repetition_ref(x, seen, penalty)
    assert_within(y, ideal, 2 * unit("float32") * np.abs(ideal))
    assert np.array_equal(y[~seen], x[~seen])


penalties = per_row(st.floats(-2, 2, width=32), np.float32)


@settings(max_examples=25)
@given(x=logits(), seed=st.integers(0, 2**32 - 1), presence=penalties, frequency=penalties)
def test_counts_cost_once_for_presence_and_each_for_frequency(x, seed, presence, frequency):
    counts = np.random.default_rng(seed).integers(0, 4, (B, V), np.int32)
    y = np.asarray(jax.jit(ops.penalise_counts)(x, counts, presence, frequency))
    ideal = ops.penalise_counts_ref(x, counts, presence, frequency)
    # The product, its sum with presence and the difference round once each; nothing is larger than this sum.
    size = np.abs(np.where(x > -np.inf, x, 0)) + np.abs(presence)[:, None] + np.abs(frequency[:, None] * counts)
    assert_within(y, ideal, 3 * unit("float32") * size.astype(np.float64))
    assert np.array_equal(y[counts == 0], x[counts == 0])


@pytest.mark.parametrize(("name", "option"), [("top_k", 2), ("top_p", 0.8), ("min_p", 0.2)])
def test_filters_keep_float64(name, option):
    with jax.enable_x64(True):
        y = FILTERS[name].keep(np.array([[0.0, 1, 2, 3]]), np.array([option]))
    assert y.dtype == np.float64
    assert np.array_equal(y, [[-np.inf, -np.inf, 2, 3]])
