"""What is counted is what the matrices were given."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import QUICK

import minillm
from minillm.compress import calibration as reading
from minillm.compress.calibration import ROWS, Inputs, Tally, Watched, calibrated, windows
from minillm.errors import UserError
from minillm.quant import Dense
from minillm.texts import calibration, evaluation

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
MIXTRAL = LLAMA | {"model_type": "mixtral", "num_local_experts": 3, "num_experts_per_tok": 2}


@pytest.fixture(autouse=True, scope="module")
def _quick():
    """Unoptimised programs."""
    with pytest.MonkeyPatch.context() as patch:
        program = jax.jit(cast(Any, reading.read).__wrapped__, compiler_options=QUICK)
        patch.setattr(reading, "read", program)
        yield


def watched(*shape):
    weight = Dense(jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32))
    return Watched(weight, jnp.int32(7), Tally())


def counted(rows):
    size = np.abs(rows)
    return Inputs(np.array(len(rows), np.float32), rows.T @ rows, size.mean(0), size.max(0))


def assert_same(found, expected):
    for name in ("n", "gram", "mean", "largest"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-5)


def test_a_watched_product_is_the_product_and_its_inputs_are_counted_over_all_calls():
    weight, rng = watched(5, 3), np.random.default_rng(1)
    parts = [rng.normal(size=(n, 5)).astype(np.float32) for n in (4, 1, 9)]
    for part in parts:
        y = jax.jit(lambda x, w: x @ w)(part[None], weight)
        np.testing.assert_array_equal(y[0], part @ weight.weight)
    jax.effects_barrier()
    assert_same(weight.tally.inputs[7], counted(np.concatenate(parts)))


def test_inputs_of_experts_are_counted_each_by_itself_and_rows_of_none_not_at_all():
    weight, rng = watched(3, 4, 2), np.random.default_rng(2)
    x, sizes = rng.normal(size=(10, 4)).astype(np.float32), np.array([5, 0, 3], np.int32)
    y = jax.jit(lambda x, w, s: w.grouped(x, s))(x, weight, sizes)
    np.testing.assert_array_equal(y, weight.weight.grouped(x, jnp.asarray(sizes)))
    jax.effects_barrier()
    found = weight.tally.inputs[7]
    for i, rows in enumerate((x[:5], None, x[5:8])):
        one = Inputs(found.n[i], found.gram[i], found.mean[i], found.largest[i])
        nothing = Inputs(*(np.zeros_like(figure) for figure in vars(one).values()))
        assert_same(one, nothing if rows is None else counted(rows))


@pytest.mark.parametrize("values", [LLAMA, MIXTRAL], ids=["mlp", "experts"])
def test_every_matrix_of_a_model_is_seen_and_twice_the_text_counts_twice(values):
    batch = np.random.default_rng(0).integers(0, 30, (4, 32)).astype(np.int32)
    once, twice = calibrated(minillm.init(values).model, iter([batch, batch]))
    kinds = {place.partition(".")[2] for place in once}
    assert kinds == {"", "qkv", "out", "up", "down"} | ({"router"} if values is MIXTRAL else set())
    assert "embed" in once
    for place, inputs in once.items():
        assert np.sum(inputs.n) >= batch.size, place
        np.testing.assert_allclose(twice[place].gram, 2 * inputs.gram, rtol=1e-4, atol=1e-3)
        np.testing.assert_array_equal(twice[place].largest, inputs.largest)


def test_windows_are_full_and_hold_the_text_in_order():
    tokenizer = minillm.load("tiny-transformer").tokenizer
    assert tokenizer is not None
    texts = calibration()
    every = [token for text in texts for token in tokenizer.encode(text)]
    batches = windows(tokenizer, texts, 100)
    assert {batch.shape for batch in batches} == {(ROWS, 100)}
    assert np.concatenate(batches).reshape(-1).tolist() == every[: len(batches) * ROWS * 100]


def test_a_text_too_short_to_calibrate_with_is_refused_with_its_size():
    tokenizer = minillm.load("tiny-transformer").tokenizer
    assert tokenizer is not None
    with pytest.raises(UserError, match="has 2 tokens, expected 1024 or more"):
        windows(tokenizer, ["a"], 512)


def test_no_text_is_both_for_calibration_and_for_measuring():
    assert not set(calibration()) & set(evaluation())
