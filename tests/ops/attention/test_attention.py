from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import assert_rms_within, assert_within, rms, unit

from minillm import ops
from minillm.ops.attention.cases import CASES, Case

compiled = jax.jit(partial(ops.naive_attention, return_lse=True), static_argnames="causal")
seeds = st.integers(0, 2**32 - 1)

MEMORY = Case("memory", b=2, t=4, s=12, h=4, g=2, k=8, positions=True, mask=True)
DENSE = Case("dense", b=2, t=4, s=6, h=4, g=2, k=8, positions=True)


def attend(*args, **kwargs) -> list[np.ndarray]:
    """Attention's y and lse, one program for each combination of shapes."""
    return [np.asarray(x) for x in compiled(*args, **kwargs)]


def draw(case: Case, seed: int, dtype="float32", size: float = 1) -> dict:
    """Arguments for `case`. Memory holds 0 … s tokens in any order of rows; its other rows are NaN."""
    rng = np.random.default_rng(seed)
    b, t, s = case.b, case.t, case.s
    args: dict = {
        "q": size * rng.normal(size=(b, t, case.h, case.k)),
        "k": rng.normal(size=(b, s, case.g, case.k)),
        "v": rng.normal(size=(b, s, case.g, case.k)),
    }
    if case.positions:
        length = rng.integers(0, s + 1, (b, 1), np.int32)
        order = rng.permuted(np.tile(np.arange(s, dtype=np.int32), (b, 1)), axis=1)
        args["q_pos"] = length - t + np.arange(t, dtype=np.int32)  # negative where there are fewer than t tokens
        args["k_pos"] = np.where(order < length, order, -1).astype(np.int32)
        args["k"][args["k_pos"] < 0] = args["v"][args["k_pos"] < 0] = np.nan
    if case.mask:
        args["mask"] = rng.random((b, t, s)) < 0.7
    return {name: x.astype(jnp.dtype(dtype)) if x.dtype == float else x for name, x in args.items()}


def roundings(q, k, v, dtype, **_) -> tuple[float, float]:
    """What one rounding to `dtype` of the scores, and one of the result, does to y and to lse.

    A score is a sum of products q k: rounding them moves it by up to unit * sum |q k|, which moves lse by as
    much and y by as much times |v|. Measured RMS errors are up to 0.95 of this; the tests allow 2.
    """
    q, k, v = (np.nan_to_num(x.astype(np.float64)) for x in (q, k, v))
    k = np.repeat(k, q.shape[2] // k.shape[2], axis=2)
    size = np.max(np.einsum("bthk,bshk->bths", np.abs(q), np.abs(k))) * q.shape[-1] ** -0.5
    return unit(dtype) * (size + 1) * rms(v), unit(dtype) * (size + 1 + np.log(k.shape[1]))


def assert_agree(a, b, args: dict) -> None:
    """Two computations of the same (y, lse): each may be two roundings off its ideal, so four between them."""
    for one, other, rounding in zip(a, b, roundings(**args, dtype="float32"), strict=True):
        assert_rms_within(one, other, 4 * rounding)


PRECISIONS = [(case, dtype) for case in CASES for dtype in ("float32", "bfloat16")] + [(CASES[-1], "float64")]


@pytest.mark.parametrize(("case", "dtype"), PRECISIONS, ids=lambda x: getattr(x, "name", x))
@settings(max_examples=8)
@given(seed=seeds, size=st.sampled_from([0.1, 1, 8]))
def test_attention_is_its_definition_within_two_roundings(case, dtype, seed, size):
    args = draw(case, seed, dtype, size)
    ideal = ops.attention_ref(**args, causal=case.causal, return_lse=True)
    wide = np.promote_types(args["q"].dtype, np.float32)
    with jax.enable_x64(dtype == "float64"):
        y, lse = attend(**args, causal=case.causal)
    assert (y.dtype, lse.dtype) == (args["q"].dtype, wide)
    for fast, exact, rounding in zip((y, lse), ideal, roundings(**args, dtype=dtype), strict=True):
        assert_rms_within(fast, exact, 2 * rounding)


@settings(max_examples=25)
@given(seed=seeds, now=st.integers(-1, 12))
def test_keys_of_the_future_change_nothing_bit_for_bit(seed, now):
    args, other = draw(MEMORY, seed), draw(MEMORY, seed + 1)
    before = attend(**args)
    for name in ("k", "v"):
        args[name] = np.where((args["k_pos"] > now)[..., None, None], np.nan_to_num(other[name]), args[name])
    past = args["q_pos"] <= now
    for x, y in zip(before, attend(**args), strict=True):
        assert np.array_equal(x[past], y[past])


@settings(max_examples=25)
@given(seed=seeds)
def test_rows_without_a_token_might_as_well_not_exist_even_if_nan(seed):
    dense = draw(DENSE, seed)
    row = np.sort(np.random.default_rng(seed).permuted(np.tile(np.arange(MEMORY.s), (DENSE.b, 1)), axis=1)[:, :6])
    batch = np.arange(DENSE.b)[:, None]
    sparse = {"q": dense["q"], "q_pos": dense["q_pos"]}
    for name, nothing in (("k", np.nan), ("v", np.nan), ("k_pos", -1)):
        sparse[name] = np.full((DENSE.b, MEMORY.s, *dense[name].shape[2:]), nothing, dense[name].dtype)
        sparse[name][batch, row] = dense[name]
    nowhere = attend(**sparse)
    assert np.isfinite(nowhere[0]).all()
    assert_agree(nowhere, attend(**dense), dense)


@pytest.mark.parametrize("causal", [True, False])
@settings(max_examples=25)
@given(seed=seeds)
def test_what_sees_nothing_gives_zero_with_weight_zero(causal, seed):
    args = draw(MEMORY, seed)
    args["q_pos"][0, 1], args["mask"][1, 2] = -1, False
    args["q"][0, 1] = np.nan  # a query that is padding may hold anything, like a key
    y, lse = attend(**args, causal=causal)
    for blind in ((0, 1), (1, 2)):
        assert np.array_equal(y[blind], np.zeros((MEMORY.h, MEMORY.k)))
        assert np.array_equal(lse[blind], np.full(MEMORY.h, -np.inf))
    assert np.isfinite(y).all()


@settings(max_examples=25)
@given(seed=seeds)
def test_the_order_of_rows_in_memory_does_not_matter(seed):
    args = draw(MEMORY, seed)
    order = np.random.default_rng(seed).permutation(MEMORY.s)
    shuffled = (
        args | {name: args[name][:, order] for name in ("k", "v", "k_pos")} | {"mask": args["mask"][..., order]}
    )
    assert_agree(attend(**shuffled), attend(**args), args)


@settings(max_examples=25)
@given(seed=seeds)
def test_grouped_queries_read_what_repeated_heads_would(seed):
    args = draw(MEMORY, seed)
    repeated = args | {name: np.repeat(args[name], MEMORY.h // MEMORY.g, axis=2) for name in ("k", "v")}
    assert_agree(attend(**repeated), attend(**args), args)


@settings(max_examples=25)
@given(seed=seeds)
def test_parts_merge_by_their_log_sum_exp(seed):
    args = draw(MEMORY, seed)
    halves = [
        args | {name: args[name][:, part] for name in ("k", "v", "k_pos")} | {"mask": args["mask"][..., part]}
        for part in (slice(0, 6), slice(6, 12))
    ]
    (y1, lse1), (y2, lse2) = (attend(**half) for half in halves)
    lse = np.logaddexp(lse1, lse2)
    with np.errstate(invalid="ignore"):  # -inf minus -inf where neither half sees anything
        w1, w2 = (np.nan_to_num(np.exp(part - lse))[..., None] for part in (lse1, lse2))
    assert_agree((w1 * y1 + w2 * y2, lse), attend(**args), args)


@settings(max_examples=25)
@given(seed=seeds, power=st.integers(-6, 6))
def test_only_the_product_of_scale_and_queries_counts(seed, power):
    args = draw(MEMORY, seed)
    factor = 2.0**power  # a power of two rounds nothing, so equality is of bits
    scaled = args | {"q": args["q"] * np.float32(factor)}
    for x, y in zip(attend(**args, scale=0.75), attend(**scaled, scale=0.75 / factor), strict=True):
        assert np.array_equal(x, y)


def test_scale_is_one_over_root_k_by_default():
    args = draw(MEMORY, 0)
    for x, y in zip(attend(**args), attend(**args, scale=MEMORY.k**-0.5), strict=True):
        assert np.array_equal(x, y)


@pytest.mark.parametrize("size", [1e4, -1e4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_huge_scores_do_not_overflow(dtype, size):
    """A query along unit vector j: +1e4 picks key j alone, -1e4 picks all others alike."""
    s = k = 8
    values = np.arange(s * k).reshape(s, k) % 7
    q, keys, v = (x[None, :, None].astype(jnp.dtype(dtype)) for x in (size * np.eye(k), np.eye(s), values))
    y, lse = attend(q, keys, v, causal=False, scale=1.0)
    ideal = values if size > 0 else (np.sum(values, axis=0) - values) / (s - 1)
    assert_within(y[0, :, 0], ideal, 2 * unit(dtype) * ideal)
    assert_within(lse, np.full(lse.shape, q.max() if size > 0 else np.log(s - 1)), 2 * unit("float32") * abs(size))


def test_bfloat16_sums_are_taken_wider():
    """257 is no bfloat16: here it is every score, the sum of the weights, and the sum of the values."""
    ones, keys = np.ones((1, 257, 1, 2), jnp.bfloat16), np.ones((1, 257, 1, 2), jnp.bfloat16)
    keys[..., 0] = 256
    y, lse = attend(ones[:, :1], keys, ones, scale=1.0)
    assert np.array_equal(y, ones[:, :1])
    assert_within(lse, np.full(lse.shape, 257 + np.log(257)), 2 * unit("float32") * 263)


def test_one_key_is_its_own_average():
    args = draw(Case("", b=2, t=1, s=1, h=4, g=2, k=8), 0)
    y, lse = attend(**args)
    assert np.array_equal(y, np.repeat(args["v"], 2, axis=2))
    scores = np.sum(args["q"] * np.repeat(args["k"], 2, axis=2), axis=-1) * 8**-0.5
    assert np.allclose(lse, scores, rtol=0, atol=2 * roundings(**args, dtype="float32")[1])


def test_every_argument_changes_the_result():
    plain, other = ({**draw(MEMORY, seed), "scale": 0.5, "causal": True} for seed in (0, 1))
    y = attend(**plain)[0]
    for name in plain:
        change = {"scale": 1.0, "causal": False}.get(name, other[name])
        assert not np.array_equal(y, attend(**(plain | {name: change}))[0]), name
    alone = jax.jit(ops.naive_attention)(**draw(MEMORY, 0))
    assert np.array_equal(alone, attend(**draw(MEMORY, 0))[0])  # return_lse adds lse and leaves y alone


def test_gradients_stay_finite_beside_rows_without_a_token():
    args = draw(MEMORY, 0)
    args["q_pos"][0, 0], args["mask"][1, 2] = -1, False
    assert (args["k_pos"] < 0).any()

    def loss(q, k, v):
        y, lse = ops.naive_attention(**(args | {"q": q, "k": k, "v": v}), return_lse=True)
        return jnp.sum(y) + jnp.sum(jnp.where(jnp.isfinite(lse), lse, 0))

    _, dk, dv = gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(args["q"], args["k"], args["v"])
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    for gradient in (dk, dv):
        assert not np.asarray(gradient)[args["k_pos"] < 0].any()


def test_heads_that_do_not_divide_into_groups_are_refused():
    args = draw(Case("", b=1, t=1, s=2, h=3, g=2, k=4), 0)
    with pytest.raises(ValueError, match="naive_attention: q has h = 3 heads, not a multiple of k's g = 2"):
        ops.naive_attention(**args)


def test_more_queries_than_keys_must_say_where_they_stand():
    args = draw(Case("", b=1, t=3, s=2, h=1, g=1, k=4), 0)
    with pytest.raises(ValueError, match=r"naive_attention: q has t = 3 > s = 2; .* q_pos"):
        ops.naive_attention(**args)
    attend(**args, q_pos=np.arange(3, dtype=np.int32)[None])
