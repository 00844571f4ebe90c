"""Mixture of experts against its definitions in NumPy, token by token, in float64; how it is loaded and trained."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import QUICK

from minillm.blocks import MLPSpec, MoE, MoESpec, Params
from minillm.blocks.moe import expert_load
from minillm.config import Config
from minillm.model import Model
from minillm.ops import clamped_swiglu_ref, gelu_ref, rms_norm_ref, route_ref, silu_ref
from minillm.span import Span

D, E = 12, 8
PLAIN = MoESpec(E, 5, 2)
SPECS = {
    "mixtral": PLAIN,
    "olmoe": MoESpec(E, 5, 3, normalise=False, activation="gelu"),
    "gpt-oss": MoESpec(E, 5, 4, bias=True, clamp=0.4),
    "qwen3-next": MoESpec(E, 5, 2, f_shared=7, shared_gate=True),
    "deepseek-v2": MoESpec(E, 5, 2, normalise=False, groups=4, top_groups=2, scale=1.5, f_shared=7),
    "deepseek-v3": MoESpec(
        E, 5, 3, scoring="sigmoid", choice_bias=True, groups=2, top_groups=1, scale=2.5, f_shared=10
    ),
    "without a gate": MoESpec(E, 5, 2, gated=False, f_shared=7),
    "every expert": MoESpec(E, 5, E),
    "one expert": MoESpec(1, 5, 1),
}
every_spec = pytest.mark.parametrize("name", SPECS)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def draw(seed: int = 0):
    """Parameters as `Model.build` asks for them; one that is plainly 1 or 0 would hide that it was left out."""
    rng = np.random.default_rng(seed)

    def get(name, layer, *shapes, init):
        shape = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        return jnp.asarray(init(rng, shape) + rng.normal(size=shape) / 4, "float64")

    return get


def block(spec: MoESpec) -> Any:
    return spec.build(Params(draw(), Config("toy", d=D, v=1, context=64, layers=(), tied=True), 0))


def activations(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(size=(*shape, D))


@partial(jax.jit, compiler_options=QUICK)
def whole(moe: Any, x: jax.Array, n: jax.Array):
    y, routed = moe(x, None, Span.chain(jnp.zeros_like(n), n, x.shape[1]))
    return y, routed.load


def matrix(weight, expert: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The matrix of a linear layer, or of one expert's, and its bias."""
    weight, bias = (weight.weight, np.asarray(weight.bias)) if hasattr(weight, "bias") else (weight, np.zeros(1))
    dense = np.asarray(weight.dense())
    return (dense, bias) if expert is None else (dense[expert], bias[expert % len(bias)])


def feed_forward(spec: MoESpec, y, up, down) -> np.ndarray:
    """One feed-forward layer from the definitions; up and down are pairs of matrix and bias."""
    inner = y @ up[0] + up[1]
    gate, linear = np.split(inner, 2, axis=-1) if spec.gated else (inner, np.ones(1))
    if spec.clamp is not None:
        inner = clamped_swiglu_ref(gate, linear, spec.clamp)
    else:
        inner = {"silu": silu_ref, "gelu": gelu_ref}[spec.activation](gate) * linear
    return inner @ down[0] + down[1]


def defined(moe: Any, x: np.ndarray) -> np.ndarray:
    """The block from the definitions of its parts, token by token; x [t d]."""
    s, y = moe.spec, rms_norm_ref(x, np.asarray(moe.norm.weight), moe.norm.eps)
    router, bias = matrix(moe.router)
    weights, experts = route_ref(
        y @ router + bias,
        top_k=s.top_k,
        scoring=s.scoring,
        normalise=s.normalise,
        bias=None if moe.choice_bias is None else np.asarray(moe.choice_bias),
        groups=s.groups,
        top_groups=s.top_groups,
        scale=s.scale,
    )
    out = np.array(x)
    for token, slot in np.ndindex(*experts.shape):
        expert = int(experts[token, slot])
        made = feed_forward(s, y[token], matrix(moe.up, expert), matrix(moe.down, expert))
        out[token] += weights[token, slot] * made
    if s.f_shared:
        made = feed_forward(s, y, matrix(moe.shared_up), matrix(moe.shared_down))
        out += made / (1 + np.exp(-y @ matrix(moe.shared_gate)[0])) if s.shared_gate else made
    return out


@every_spec
def test_it_is_what_its_definitions_say(name):
    moe, x = block(SPECS[name]), activations(np.random.default_rng(1), (2, 21))
    y, load = whole(moe, x, np.array([21, 21], np.int32))
    np.testing.assert_allclose(y, [defined(moe, row) for row in x], rtol=0, atol=1e-12)
    assert load.sum() == 2 * 21 * moe.spec.top_k


CHANGES = [
    {"top_k": 3},
    {"scoring": "softmax"},
    {"normalise": False},
    {"groups": None, "top_groups": None},
    {"top_groups": 2},
    {"scale": 1.0},
    {"activation": "gelu"},
    {"clamp": 0.5},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_every_choice_changes_the_result(change):
    spec = replace(SPECS["deepseek-v3"], top_k=2)
    moe, x = block(spec), activations(np.random.default_rng(1), (2, 21))
    n = np.array([21, 21], np.int32)
    assert not np.allclose(whole(moe, x, n)[0], whole(moe.replace(spec=replace(spec, **change)), x, n)[0])


@every_spec
def test_padding_disturbs_nothing_and_is_no_load(name):
    moe, x = block(SPECS[name]), activations(np.random.default_rng(2), (2, 21))
    expected, load = whole(moe, x, np.array([4, 21], np.int32))
    x[0, 4:] = np.nan
    x[0, 5] = 1e30
    y, padded_load = whole(moe, x, np.array([4, 21], np.int32))
    np.testing.assert_allclose(y[0, :4], expected[0, :4], rtol=0, atol=1e-12)
    np.testing.assert_allclose(y[1], expected[1], rtol=0, atol=1e-12)
    assert np.array_equal(load, padded_load)
    assert load.sum() == 25 * moe.spec.top_k


def test_no_token_is_dropped_where_all_choose_the_same_expert():
    moe, x = block(SPECS["gpt-oss"]), activations(np.random.default_rng(3), (1, 200))
    bias = moe.router.bias.at[np.array([3, 5, 6, 1])].add(100.0)
    moe = moe.replace(router=moe.router.replace(bias=bias))
    y, load = whole(moe, x, np.array([200], np.int32))
    assert np.array_equal(load, [0, 200, 0, 200, 0, 200, 200, 0])
    np.testing.assert_allclose(y[0], defined(moe, x[0]), rtol=0, atol=1e-11)


def dense_form(moe: Any, x: jax.Array) -> jax.Array:
    """Every expert on every token, weighted; only for a block without biases."""
    y = moe.norm(x)
    weights, experts = moe.route(y)
    gate, up = jnp.split(jnp.einsum("td,edf->etf", y, moe.up.dense()), 2, axis=-1)
    made = jnp.einsum("etf,efd->etd", jax.nn.silu(gate) * up, moe.down.dense())
    share = jnp.sum(jax.nn.one_hot(experts, E) * weights[:, :, None], axis=1)
    return x + jnp.einsum("te,etd->td", share, made)


def test_its_gradients_are_those_of_every_expert_on_every_token():
    moe, rng = block(PLAIN), np.random.default_rng(4)
    x, dy = activations(rng, (33,)), activations(rng, (33,))
    at = Span.chain(jnp.zeros(1, jnp.int32), jnp.full(1, 33, jnp.int32), 33)
    ours, theirs = (
        jax.jit(lambda moe, x, form=form: jax.vjp(form, moe, x)[1](dy), compiler_options=QUICK)(moe, x)
        for form in (lambda moe, x: moe(x[None], None, at)[0][0], dense_form)
    )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def model_of(*layers) -> Model:
    return Model.build(Config("toy", d=D, v=31, context=64, layers=layers, tied=True), draw())


def test_the_load_of_experts_can_be_seen():
    model = model_of((PLAIN,), (MLPSpec(5),), (replace(PLAIN, f=3),))
    tokens = jnp.asarray(np.random.default_rng(5).integers(0, 31, (3, 17)), jnp.int32)
    load = expert_load(model, tokens)
    assert load.shape == (2, E)
    assert load.dtype == jnp.int32
    assert np.array_equal(load.sum(axis=1), [3 * 17 * 2] * 2)
    first = model.blocks[0]
    assert isinstance(first, MoE)
    _, experts = first.route(first.norm(model.embed.rows(tokens)).reshape(-1, D))
    assert np.array_equal(load[0], np.bincount(np.ravel(experts), minlength=E))


def test_a_model_without_experts_has_no_load_to_see():
    with pytest.raises(ValueError, match="expert_load: the model has no block with experts"):
        expert_load(model_of((MLPSpec(5),)), jnp.zeros((1, 3), jnp.int32))


@pytest.mark.parametrize("tokens", [[[1, 2, 31]], [[-1]], [1, 2], [[]]])
def test_tokens_that_are_none_have_no_load_to_see(tokens):
    with pytest.raises(ValueError, match=r"expected ids \[b, t\] from 0 to 30"):
        expert_load(model_of((PLAIN,)), tokens)


def test_choices_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match=r"clamp is 7\.0, expected None"):
        MoESpec(4, 5, 2, clamp=7.0, gated=False)
    with pytest.raises(ValueError, match="shared_gate is True, expected False"):
        MoESpec(4, 5, 2, shared_gate=True)


def test_a_router_works_in_float32_where_tokens_are_in_bfloat16():
    moe = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), block(PLAIN))
    y = jnp.asarray(activations(np.random.default_rng(6), (9,)), jnp.bfloat16)
    weights, experts = moe.route(y)
    assert weights.dtype == jnp.float32
    wide = np.asarray(y, np.float32) @ np.asarray(moe.router.dense(), np.float32)
    expected, chosen = route_ref(wide, top_k=2)
    assert np.array_equal(experts, chosen)
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
