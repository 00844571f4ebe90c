"""Zeros go where they are said to go, and nothing else changes unless it makes up for them."""

from typing import Any, cast

import jax
import numpy as np
import pytest
from agreement import QUICK
from hypothesis import given, settings
from hypothesis import strategies as st

import minillm
from minillm.compress import calibration as reading
from minillm.compress.calibration import Inputs, calibrated, windows
from minillm.compress.sparse import BLOCK, METHODS, is_sparse, lowest, magnitude, sparsegpt, sparsified, wanda
from minillm.errors import UserError
from minillm.evaluate.measures import kl_divergence
from minillm.quant import is_weight
from minillm.texts import calibration, evaluation

SEEDS = st.integers(0, 2**32 - 1)
SHAPES = st.sampled_from([(4, 8), (5, 40), (2, BLOCK + 20)])
SIZES: dict[str, Any] = {
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
}
DENSE = SIZES | {"model_type": "llama"}
EXPERTS = SIZES | {"model_type": "mixtral", "num_local_experts": 3, "num_experts_per_tok": 2}


@pytest.fixture(autouse=True, scope="module")
def _quick():
    """Unoptimised programs: what they give is compared with each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "read", jax.jit(cast(Any, reading.read).__wrapped__, compiler_options=QUICK))
        yield


def of_gram(gram: np.ndarray) -> Inputs:
    zeros = np.zeros(len(gram), np.float32)
    return Inputs(np.array(1, np.float32), gram.astype(np.float32), zeros, zeros)


def drawn(seed: int, shape: tuple[int, int], rank: int | None = None) -> tuple[np.ndarray, Inputs]:
    """A matrix, and inputs that are related if there are fewer of `rank` than channels, and of unlike size."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(200, rank or shape[1])) @ rng.normal(size=(rank or shape[1], shape[1]))
    x = (x + 0.3 * rng.normal(size=x.shape)) * rng.uniform(0.1, 3, shape[1])
    return rng.normal(size=shape).astype(np.float32), of_gram(x.T @ x)


def error(w: np.ndarray, new: np.ndarray, inputs: Inputs) -> float:
    """The squared error of the product over all inputs."""
    e = (w - new).astype(np.float64)
    return float(np.sum((e @ inputs.gram) * e))


@settings(max_examples=25)
@given(SEEDS, SHAPES, st.sampled_from(sorted(METHODS)), st.sampled_from([0.25, 0.5, 0.9]))
def test_a_whole_share_of_every_group_is_zero(seed, shape, method, share):
    w, inputs = drawn(seed, shape)
    assert np.all(w != 0)
    new = METHODS[method](w, inputs, share, None)
    if method == "wanda":
        assert np.all(np.sum(new == 0, axis=1) == int(share * shape[1]))
    if method == "magnitude":
        assert np.sum(new == 0) == int(share * w.size)
    if method == "sparsegpt":
        blocks = [new[:, i : i + BLOCK] for i in range(0, shape[1], BLOCK)]
        assert [np.sum(one == 0) for one in blocks] == [int(share * one.size) for one in blocks]


@settings(max_examples=25)
@given(SEEDS, st.sampled_from([(4, 8), (3, 12)]), st.sampled_from(sorted(METHODS)))
def test_of_four_neighbours_in_a_row_two_go_if_so_asked(seed, shape, method):
    w, inputs = drawn(seed, shape)
    new = METHODS[method](w, inputs, 0.5, 4)
    assert np.all(np.sum(new.reshape(shape[0], -1, 4) == 0, axis=-1) == 2)


@settings(max_examples=25)
@given(SEEDS, SHAPES, st.floats(0.01, 100))
def test_wanda_on_inputs_of_one_size_is_magnitude_row_by_row(seed, shape, size):
    w, _ = drawn(seed, shape)
    equal = of_gram(size * np.eye(shape[1]))
    np.testing.assert_array_equal(wanda(w, equal, 0.5), magnitude(w, None, 0.5, shape[1]))


@settings(max_examples=25)
@given(SEEDS, SHAPES)
def test_no_other_choice_within_rows_is_better_than_wandas_on_inputs_that_are_not_related(seed, shape):
    w, inputs = drawn(seed, shape)
    alone = of_gram(np.diag(np.diagonal(inputs.gram)))
    order = np.random.default_rng(seed).permuted(np.tile(np.arange(shape[1]), (shape[0], 1)), axis=1)
    other = np.where(order < shape[1] // 2, 0, w)
    for rival in (other, magnitude(w, None, 0.5, shape[1])):
        assert error(w, wanda(w, alone, 0.5), alone) <= error(w, rival, alone) * (1 + 1e-6)


@settings(max_examples=8)
@given(SEEDS, SHAPES)
def test_sparsegpt_on_inputs_that_are_not_related_is_magnitude_and_moves_nothing(seed, shape):
    w, _ = drawn(seed, shape)
    new = sparsegpt(w, of_gram(np.eye(shape[1])), 0.5)
    for i in range(0, shape[1], BLOCK):
        np.testing.assert_array_equal(new[:, i : i + BLOCK], magnitude(w[:, i : i + BLOCK], None, 0.5))


@pytest.mark.parametrize("seed", range(5))
def test_sparsegpt_makes_up_for_what_went_where_inputs_are_related(seed):
    w, inputs = drawn(seed, (16, BLOCK + 32), rank=40)
    errors = [error(w, METHODS[name](w, inputs, 0.5, None), inputs) for name in ("sparsegpt", "wanda", "magnitude")]
    assert errors[0] < 0.7 * errors[1] < errors[1] < errors[2]


def test_the_columns_that_a_sparsegpt_block_moves_get_the_least_squares_answer():
    w, inputs = drawn(1, (1, 6), rank=3)
    gone = lowest(np.array([[0.0, 1, 1, 1, 1, 1]]), 0.2, 6)
    loud = np.where(gone, 1e-3, w + np.sign(w) * 50).astype(np.float32)  # so that only the first number goes
    new = sparsegpt(loud, inputs, 0.2)
    h = inputs.gram.astype(np.float64)
    h += 0.01 * np.mean(np.diagonal(h)) * np.eye(6)
    best = loud[0, 1:] + np.linalg.solve(h[1:, 1:], h[1:, :1] @ loud[0, :1])
    np.testing.assert_allclose(new[0], [0, *best], rtol=1e-5)


def test_numbers_that_meet_a_channel_that_says_nothing_go_first_to_wanda_however_large():
    w, inputs = drawn(2, (3, 4))
    inputs.gram[1] = inputs.gram[:, 1] = 0
    w[:, 1] = 100
    assert np.argwhere(wanda(w, inputs, 0.25) == 0).tolist() == [[0, 1], [1, 1], [2, 1]]


@pytest.mark.parametrize("config", [DENSE, EXPERTS], ids=["mlp", "experts"])
def test_in_a_model_only_the_matrices_of_its_blocks_get_zeros_each_by_its_own_inputs(config):
    model = minillm.init(config).model
    *_, inputs = calibrated(model, iter([np.arange(60, dtype=np.int32).reshape(2, 30) % 29]))
    told = []
    new = sparsified(model, inputs, "wanda", 0.5, progress=lambda *step: told.append(step))
    assert told[-1] == ("making zeros", len(told), len(told))
    flat = jax.tree_util.tree_flatten_with_path
    pairs = zip(flat(model, is_leaf=is_weight)[0], flat(new, is_leaf=is_weight)[0], strict=True)
    for (path, before), (_, after) in pairs:
        place = jax.tree_util.keystr(path).removeprefix(".")
        if not (is_weight(before) and is_sparse(place)):
            for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
                np.testing.assert_array_equal(one, other)
            continue
        w, found, one = np.asarray(before.T.dense()), np.asarray(after.T.dense()), inputs[place]
        if w.ndim == 2:
            np.testing.assert_array_equal(found, wanda(w, one, 0.5))
            continue
        for e in range(len(w)):
            mine = Inputs(one.n[e], one.gram[e], one.mean[e], one.largest[e])
            np.testing.assert_array_equal(found[e], wanda(w[e], mine, 0.5))
    assert any("router" in jax.tree_util.keystr(path) for path, _ in flat(model)[0]) == (config is EXPERTS)


def test_what_cannot_be_done_is_refused_by_name():
    lm = minillm.init(DENSE)
    with pytest.raises(UserError, match="method is 'wander', expected one of magnitude, wanda, sparsegpt"):
        sparsified(lm.model, {}, "wander", 0.5)
    with pytest.raises(UserError, match=r"sparsity is 1\.5"):
        sparsified(lm.model, {}, "magnitude", 1.5)
    with pytest.raises(UserError, match=r"blocks\[0\].qkv has multiplied nothing"):
        sparsified(lm.model, {}, "wanda", 0.5)
    with pytest.raises(UserError, match=r"qkv has 16 inputs, expected a multiple of 5"):
        sparsified(lm.model, {}, "magnitude", 0.5, 5)
    with pytest.raises(UserError, match=r"stored as \w+, expected plain numbers"):
        sparsified(lm.quantize("w8a8")[0].model, {}, "magnitude", 0.5)


def test_a_bundled_model_bears_zeros_better_the_more_its_inputs_have_a_say():
    lm = minillm.load("tiny-draft")
    assert lm.tokenizer is not None
    *_, inputs = calibrated(lm.model, iter(windows(lm.tokenizer, calibration(), 256)[:2]))
    tokens = windows(lm.tokenizer, evaluation(), 256)[0]
    right = reading.read(lm.model, tokens)
    wide = max(one.gram.shape[-1] for one in inputs.values())
    assert wide == 256  # so that groups of one row can be asked for below
    kld = {}
    for name in METHODS:
        kld[name] = float(
            np.mean(kl_divergence(right, reading.read(sparsified(lm.model, inputs, name, 0.5), tokens)))
        )
    # Numbers that are compared row by row, as Wanda does: magnitude's own choice, of a whole matrix, is another.
    by_row = cast(Any, lambda w, inputs, share, group: magnitude(w, None, share, w.shape[1]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "magnitude", by_row)
        rows = sparsified(lm.model, inputs, "magnitude", 0.5)
    kld["by row"] = float(np.mean(kl_divergence(right, reading.read(rows, tokens))))
    assert kld["sparsegpt"] < 0.8 * kld["wanda"]
    assert kld["wanda"] < kld["by row"], kld
