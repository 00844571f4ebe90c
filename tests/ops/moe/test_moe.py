from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import all_draws, assert_forms_agree, assert_laws_hold, assert_narrow_floats_run
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.ops.moe.capacity import moe_capacity
from minillm.ops.moe.cases import OPS
from minillm.ops.moe.dense import moe_dense
from minillm.ops.moe.ref import moe_capacity_ref, moe_ref, route_ref
from minillm.ops.moe.router import route
from minillm.ops.moe.sorted import moe_sorted

every_op = pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
five_of_twelve = jax.jit(partial(route, top_k=5, groups=3, top_groups=2, scale=2.0))
FORMS = {"moe_dense": moe_dense, "moe_sorted": moe_sorted, "moe_capacity": moe_capacity}


@every_op
def test_every_form_is_the_definition_on_ordinary_exact_and_nasty_inputs(op):
    for _, draw in all_draws(op):
        assert_forms_agree(op, draw)


@every_op
def test_laws_hold_for_every_form(op):
    assert_laws_hold(op, [op.cases[2], op.cases[8]] if op.name == "route" else [op.cases[3]])


@every_op
def test_bfloat16_goes_in_and_comes_out(op):
    assert_narrow_floats_run(op, op.cases[4])


def test_normalised_softmax_is_the_softmax_of_the_chosen_logits():
    """So Mixtral and gpt-oss, which choose first, need no option of their own."""
    logits = np.random.default_rng(0).normal(size=(7, 16)).astype(np.float32)
    weights, experts = route(jnp.asarray(logits), top_k=4)
    chosen = np.sort(logits, axis=1)[:, :-5:-1]
    assert np.array_equal(np.take_along_axis(logits, np.asarray(experts), 1), chosen)
    ideal = np.exp(chosen) / np.exp(chosen).sum(axis=1, keepdims=True)
    assert np.allclose(weights, ideal, rtol=1e-6, atol=0)


V3 = {"top_k": 2, "scoring": "sigmoid", "groups": 2, "top_groups": 1, "scale": 2.5}


def test_deepseek_v3_by_hand():
    """Scores 1/2, 1/2, 1/4, 3/4: the bias lifts the first group, whose weights do not show it."""
    logits, bias = np.log([[1.0, 1, 1 / 3, 3]]), np.array([0.25, 0.5, 0.0, 0.0])
    with jax.enable_x64(True):
        result = route(jnp.asarray(logits), bias=jnp.asarray(bias), **V3)
    for weights, experts in (result, route_ref(logits, bias=bias, **V3)):
        assert np.array_equal(experts, [[1, 0]])
        assert np.allclose(weights, [[1.25, 1.25]], rtol=1e-14)


@pytest.mark.parametrize(
    "change",
    [
        {"top_k": 1},
        {"scoring": "softmax"},
        {"normalise": False},
        {"bias": None},
        {"groups": 1},
        {"top_groups": 2},
        {"scale": 1.0},
    ],
    ids=str,
)
def test_every_option_changes_the_route(change):
    rng = np.random.default_rng(3)
    logits, bias = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((50, 4), (4,)))
    plain, other = (route(logits, **{"bias": bias, **V3, **more}) for more in ({}, change))
    assert any(not np.array_equal(a, b) for a, b in zip(plain, other, strict=True))


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1))
def test_experts_of_a_token_differ_and_normalised_weights_sum_to_the_scale(seed):
    logits = 8 * np.random.default_rng(seed).normal(size=(5, 12)).astype(np.float32)
    weights, experts = five_of_twelve(logits)
    assert all(len(set(row)) == 5 for row in np.asarray(experts))
    assert np.all(np.diff(np.take_along_axis(logits, np.asarray(experts), 1)) <= 0)
    assert np.allclose(np.sum(weights, axis=1), 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k is 0, expected 1 to 6"),
        ({"top_k": 7}, "top_k is 7, expected 1 to 6"),
        ({"top_k": 1, "scoring": "relu"}, "scoring is 'relu'"),
        ({"top_k": 1, "groups": 2}, "groups is 2 and top_groups None, expected both or neither"),
        ({"top_k": 1, "groups": 4, "top_groups": 1}, "groups is 4, expected a divisor of e = 6"),
        ({"top_k": 1, "groups": 3, "top_groups": 4}, "top_groups is 4, expected 1 to groups = 3"),
        ({"top_k": 3, "groups": 3, "top_groups": 1}, "top_k is 3, expected 1 to 2, the experts that can be chosen"),
    ],
)
def test_a_route_that_cannot_be_meant_is_refused(options, message):
    with pytest.raises(ValueError, match=f"route: {message}"):
        route(jnp.zeros((2, 6)), **options)


def arguments(experts) -> list:
    rng, experts = np.random.default_rng(0), np.array(experts, np.int32)
    shapes = ((len(experts), 4), experts.shape, (3, 4, 5), (3, 4, 5), (3, 5, 4))
    x, weights, *matrices = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    return [x, weights, experts, *matrices]


@pytest.mark.parametrize("form", FORMS)
def test_experts_that_do_not_exist_are_refused_before_anything_is_compiled(form):
    with pytest.raises(ValueError, match=rf"{form}: experts \[t m\] holds -1 to 2, expected 0 to e - 1 = 2"):
        FORMS[form](*arguments([[0, 1], [2, -1]]))
    with pytest.raises(ValueError, match=rf"{form}: experts \[t m\] holds 0 to 3, expected 0 to e - 1 = 2"):
        FORMS[form](*arguments([[0, 3]]))
    with pytest.raises(ValueError, match=rf"{form}: experts \[t m\] names an expert twice"):
        FORMS[form](*arguments([[0, 1], [2, 2]]))


@pytest.mark.parametrize("form", FORMS)
def test_letters_that_clash_are_named(form):
    x, *rest = arguments([[0, 1]])
    with pytest.raises(ValueError, match=rf"{form}: w_gate \[e d f\] has d = 4, but x has d = 3"):
        FORMS[form](x[:, :3], *rest)


def test_a_capacity_below_one_is_refused():
    with pytest.raises(ValueError, match="moe_capacity: capacity is 0, expected 1 or more"):
        moe_capacity(*arguments([[0, 1]]), capacity=0)


def test_an_expert_serves_its_first_tokens_and_others_keep_their_weights():
    """Both tokens want expert 0; with room for one, the second is left with its other expert alone."""
    full, given = arguments([[0, 1], [0, 2]]), arguments([[0, 1], [0, 2]])
    given[1][1, 0] = 0
    y, ideal = moe_capacity_ref(*full, capacity=1), moe_ref(*given)
    assert np.array_equal(y, ideal)
    assert not np.allclose(y, moe_ref(*full))
