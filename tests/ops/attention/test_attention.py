"""What is particular to single forms of attention: dtypes, defaults, merging, memory, gradients, refusals."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import QUICK
from jax.extend.core import jaxprs_in_params
from tolerance import assert_rms_within, assert_within, rms, unit

from minillm.ops.attention.blocked import blocked_attention
from minillm.ops.attention.cases import ATTENTION, draw
from minillm.ops.attention.naive import naive_attention
from minillm.ops.attention.ref import attention_ref
from minillm.ops.attention.split import merge_attention, split_attention

CASES = {case.name: case for case in ATTENTION.cases}
RAGGED, TREE, ALL = (CASES[name] for name in ("ragged positions", "draft tree", "everything at once"))
every_form = pytest.mark.parametrize("form", ATTENTION.forms.values(), ids=ATTENTION.forms)


def inputs(case, seed: int = 0, dtype="float32") -> dict:
    arrays = draw(case, np.random.default_rng(seed))
    return {name: x.astype(jnp.dtype(dtype)) if x.dtype == float else x for name, x in arrays.items()}


def compiled(form, **options) -> Any:
    return jax.jit(partial(form, **options), compiler_options=QUICK)


def ones(*shape: int) -> Any:
    return np.ones(shape, np.float32)


def roundings(q, k, v, dtype, **_) -> tuple[float, float]:
    """What one rounding to `dtype` of the scores, and one of the result, does to y and to lse.

    A score is a sum of products q k: rounding them moves it by up to unit * sum |q k|, which moves lse by as
    much and y by as much times |v|.
    """
    q, k, v = (np.nan_to_num(x.astype(np.float64)) for x in (q, k, v))
    k = np.repeat(k, q.shape[2] // k.shape[2], axis=2)
    size = np.max(np.einsum("bthk,bshk->bths", np.abs(q), np.abs(k))) * q.shape[-1] ** -0.5
    return unit(dtype) * (size + 1) * rms(v), unit(dtype) * (size + 1 + np.log(k.shape[1]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@every_form
def test_results_are_within_two_roundings_and_of_the_promised_dtypes(form, dtype):
    args = inputs(RAGGED, dtype=dtype)
    y, lse = compiled(form, return_lse=True)(**args)
    assert (y.dtype, lse.dtype) == (jnp.dtype(dtype), np.float32)
    ideal = attention_ref(**args, return_lse=True)
    for fast, exact, rounding in zip((y, lse), ideal, roundings(**args, dtype=dtype), strict=True):
        assert_rms_within(fast, exact, 2 * rounding)


@every_form
def test_bfloat16_sums_are_taken_wider(form):
    """257 is no bfloat16: here it is every score, the sum of the weights, and the sum of the values."""
    values, keys = (ones(1, 257, 1, 2).astype(jnp.bfloat16) for _ in range(2))
    keys[..., 0] = 256
    y, lse = compiled(form, scale=1.0, return_lse=True)(values[:, :1], keys, values)
    assert np.array_equal(y, values[:, :1])
    assert_within(lse, np.full(lse.shape, 257 + np.log(257)), 2 * unit("float32") * 263)


@every_form
def test_what_sees_nothing_gives_zero_with_weight_zero_or_the_sink_s(form):
    args = inputs(TREE)
    args["q_pos"][0, 1], args["mask"][1, 2] = -1, False
    args["q"][0, 1] = np.nan  # a query that is padding may hold anything, like a key
    for sinks, weight in ((None, np.full(4, -np.inf)), (2 * ones(4), 2 * ones(4))):
        y, lse = compiled(form, return_lse=True)(**args, sinks=sinks)
        for blind in ((0, 1), (1, 2)):
            assert np.array_equal(y[blind], np.zeros((4, 8)))
            assert np.array_equal(lse[blind], weight)
        assert np.isfinite(y).all()


@every_form
def test_no_keys_at_all_are_nothing_to_see(form):
    q, nothing, q_pos = ones(1, 2, 2, 3), ones(1, 0, 1, 3), np.ones((1, 2), np.int32)
    y, lse = compiled(form, return_lse=True)(q, nothing, nothing, q_pos=q_pos)
    assert np.array_equal(y, np.zeros((1, 2, 2, 3)))
    assert np.array_equal(lse, np.full((1, 2, 2), -np.inf))


def test_every_argument_changes_the_result():
    plain, attend = inputs(ALL), compiled(naive_attention)
    y = attend(**plain)
    changed = {name: x[:, ::-1] for name, x in plain.items() if x.ndim > 1}
    changed |= {name: plain[name] + 1 for name in ("q_segment", "k_segment", "sinks", "alibi")}
    for name, x in changed.items():
        assert not np.array_equal(y, attend(**(plain | {name: x})), equal_nan=True), name
    del plain["mask"]  # a tree's mask hides the future by itself
    y = attend(**plain)
    for option in ({"causal": False}, {"window": 3}, {"softcap": 0.5}, {"scale": 0.1}):
        assert not np.array_equal(y, compiled(naive_attention, **option)(**plain)), option
    alone, _ = compiled(naive_attention, return_lse=True)(**plain)
    assert_within(alone, np.asarray(y, np.float64), 4 * unit("float32"))  # return_lse adds lse, no more


def test_defaults_are_the_last_positions_and_one_over_root_k():
    args = inputs(CASES["grouped queries, narrow values"])
    args["q"] = args["q"][:, 5:]
    pos = np.tile(np.arange(9, dtype=np.int32), (2, 1))
    spelled = compiled(naive_attention, causal=True, scale=8**-0.5)(**args, q_pos=pos[:, 5:], k_pos=pos)
    assert np.array_equal(compiled(naive_attention)(**args), spelled)


@pytest.mark.parametrize(
    "form",
    [partial(blocked_attention, block=n) for n in (1, 1000)]
    + [partial(split_attention, splits=n) for n in (3, 50)],
    ids=lambda form: str(form.keywords),
)
def test_results_do_not_depend_on_how_the_keys_are_cut(form):
    args = inputs(RAGGED)
    ideal = attention_ref(**args, return_lse=True)
    for fast, exact, rounding in zip(
        compiled(form, return_lse=True)(**args), ideal, roundings(**args, dtype="float32"), strict=True
    ):
        assert_rms_within(fast, exact, 2 * rounding)


def test_parts_merge_in_any_grouping_and_a_part_that_saw_nothing_weighs_nothing():
    rng = np.random.default_rng(0)
    ys, lses = rng.normal(size=(3, 1, 2, 2, 4)).astype(np.float32), rng.normal(size=(3, 1, 2, 2)).astype(np.float32)
    lses[0, 0, 0], lses[:, 0, 1, 1] = -np.inf, -np.inf
    merge = compiled(merge_attention)
    y, lse = merge(ys, lses)
    two = merge(ys[1:], lses[1:])
    pairwise = merge(np.stack([ys[0], two[0]]), np.stack([lses[0], two[1]]))
    for x, z in zip(pairwise, (y, lse), strict=True):
        assert_within(x, np.asarray(z, np.float64), 8 * unit("float32"))
    assert np.array_equal(y[0, 0], two[0][0, 0])
    assert np.array_equal(y[0, 1, 1], np.zeros(4))
    assert np.array_equal(lse[0, 1, 1], -np.inf)


def largest(jaxpr) -> int:
    """The number of elements of the largest intermediate result."""
    sizes = [out.aval.size for eqn in jaxpr.eqns for out in eqn.outvars]
    inner = [largest(sub) for eqn in jaxpr.eqns for sub in jaxprs_in_params(eqn.params)]
    return max(sizes + inner, default=0)


def test_blocks_never_build_the_whole_score_matrix():
    q, k = ones(1, 128, 1, 2), ones(1, 1024, 1, 2)
    sizes = [largest(jax.make_jaxpr(form)(q, k, k).jaxpr) for form in (naive_attention, blocked_attention)]
    assert sizes == [128 * 1024, 128 * 64]


@every_form
def test_gradients_stay_finite_beside_rows_without_a_token(form):
    args = inputs(TREE)
    args["q_pos"][0, 0], args["mask"][1, 2] = -1, False
    assert (args["k_pos"] < 0).any()

    def loss(q, k, v, sinks):
        y, lse = form(**(args | {"q": q, "k": k, "v": v}), sinks=sinks, return_lse=True)
        return jnp.sum(y) + jnp.sum(jnp.where(jnp.isfinite(lse), lse, 0))

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)), compiler_options=QUICK)
    gradients = gradient(args["q"], args["k"], args["v"], np.zeros(4, np.float32))
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    for gradient in gradients[1:3]:
        assert not np.asarray(gradient)[args["k_pos"] < 0].any()


REFUSED = [
    ({"window": 0}, "window is 0, expected at least 1"),
    ({"window": -3}, "window is -3, expected at least 1"),
    ({"softcap": 0.0}, "softcap is 0.0, expected more than 0"),
    ({"k_segment": np.zeros((1, 2), np.int32)}, "q_segment is missing"),
    ({"q_segment": np.zeros((1, 2), np.int32)}, "k_segment is missing"),
    ({"q": np.zeros((1, 2, 3, 4), np.float32)}, "q has h = 3 heads, not a multiple of k's g = 2"),
    ({"q": np.zeros((1, 3, 4, 4), np.float32)}, "q has t = 3 > s = 2; .* q_pos"),
    ({"sinks": np.zeros(3, np.float32)}, r"sinks \[h\] has h = 3, but q has h = 4"),
    ({"alibi": np.zeros(4, np.int32)}, r"alibi \[h\] has dtype int32, expected float"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[message for _, message in REFUSED])
@every_form
def test_what_cannot_be_meant_is_refused(form, change, message):
    args = {name: ones(1, 2, n, 4) for name, n in (("q", 4), ("k", 2), ("v", 2))}
    with pytest.raises(ValueError, match=f"^{form.__name__}: {message}"):
        form(**(args | change))


def test_blocks_and_splits_of_nothing_are_refused():
    x = ones(1, 2, 2, 4)
    with pytest.raises(ValueError, match="blocked_attention: block is 0, expected at least 1"):
        blocked_attention(x, x, x, block=0)
    with pytest.raises(ValueError, match="split_attention: splits is 0, expected at least 1"):
        split_attention(x, x, x, splits=0)


def test_queries_say_where_they_stand_when_there_are_more_of_them_than_keys():
    q, k, q_pos = ones(1, 3, 1, 4), ones(1, 2, 1, 4), np.arange(3, dtype=np.int32)[None]
    assert np.array_equal(compiled(naive_attention)(q, k, k, q_pos=q_pos), q)
