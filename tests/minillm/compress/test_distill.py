"""A pruned model learns again from its teacher, with any text or none, and can be killed on the way."""

from functools import cache, partial
from typing import Any, cast

import jax
import numpy as np
import pytest
from agreement import QUICK

import minillm
from minillm import train as training
from minillm.compress import calibration, distill
from minillm.compress.distill import drawn, given, recovered, written
from minillm.compress.prune import without_layers
from minillm.errors import UserError
from minillm.evaluate.measures import kl_divergence
from minillm.train import Batch

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
TOKENS = np.random.default_rng(0).integers(0, 40, (8, 16)).astype(np.int32)
LESSONS = Batch(TOKENS, np.full(8, 16, np.int32))


STEP = jax.jit(
    cast(Any, training.train_step).__wrapped__,
    donate_argnames="state",
    static_argnames="update",
    compiler_options=QUICK,
)
OPTIMIZER = cache(training.optimizer)  # so that runs alike share a program
SAMPLED = jax.jit(cast(Any, distill.sampled).__wrapped__, static_argnames="t", compiler_options=QUICK)
READ = jax.jit(cast(Any, calibration.read).__wrapped__, compiler_options=QUICK)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Unoptimised programs; and optax mixes integers and floats, which other tests forbid."""
    monkeypatch.setattr(training, "train_step", STEP)
    monkeypatch.setattr(training, "optimizer", OPTIMIZER)
    monkeypatch.setattr(calibration, "read", READ)
    monkeypatch.setattr(distill, "sampled", SAMPLED)
    monkeypatch.setattr(distill, "ROWS", 4)
    with jax.numpy_dtype_promotion("standard"):
        yield


class Letters:
    """A tokenizer for tests: one token a letter, 1 begins a text and 2 ends it."""

    ends = (2,)

    def encode(self, text):
        return [1, *(3 + ord(letter) % 37 for letter in text)]


@pytest.fixture(scope="module")
def teacher():
    return minillm.init(LLAMA)


def test_what_was_pruned_comes_nearer_to_its_teacher(teacher, tmp_path):
    pruned, *_ = without_layers(teacher.model, teacher.config, 1, [TOKENS])
    before = [np.asarray(leaf) for leaf in jax.tree.leaves((pruned, teacher.model))]
    again = recovered(pruned, teacher.model, LESSONS, 40, tmp_path / "part")
    right = calibration.read(teacher.model, TOKENS)
    far, near = (float(np.mean(kl_divergence(right, calibration.read(model, TOKENS)))) for model in (pruned, again))
    assert near < 0.85 * far
    for one, other in zip(before, jax.tree.leaves((pruned, teacher.model)), strict=True):
        np.testing.assert_array_equal(one, other)  # neither of them was written over


@pytest.mark.parametrize("killed", [1, 4, 6])
def test_a_recovery_that_was_killed_ends_in_the_same_bits(killed, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(distill, "train", partial(training.train, save_every=2))
    pruned, *_ = without_layers(teacher.model, teacher.config, 1, [TOKENS])
    whole = recovered(pruned, teacher.model, LESSONS, 6, tmp_path / "whole")

    def kill(doing, step, of):
        if step == killed:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recovered(pruned, teacher.model, LESSONS, 6, tmp_path / "part", progress=kill)
    told = []
    again = recovered(
        pruned, teacher.model, LESSONS, 6, tmp_path / "part", progress=lambda *step: told.append(step)
    )
    assert [step for _, step, _ in told] == list(range(killed // 2 * 2 + 1, 7))
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)


def test_batches_follow_from_seed_and_step_and_all_rows_have_their_turn():
    rows = Batch(np.arange(10, dtype=np.int32)[:, None], np.arange(10, dtype=np.int32))
    one, again, other = drawn(rows, 0), drawn(rows, 0), drawn(rows, 1)
    taken = [one(step).n.tolist() for step in range(12)]
    assert taken == [again(step).n.tolist() for step in range(12)] != [other(step).n.tolist() for step in range(12)]
    assert all(len(set(batch)) == 4 for batch in taken)
    assert {row for batch in taken for row in batch} == set(range(10))
    assert len(drawn(Batch(rows.tokens[:1], rows.n[:1]), 0)(0).n) == 4  # a row may have to come twice


def test_rows_of_texts_hold_every_token_once_with_its_end():
    tokens, n = given(cast(Any, Letters()), ["abcdefg", "hi", ""], 4)
    assert tokens.shape == (4, 4)
    found = [row[:size].tolist() for row, size in zip(tokens, n, strict=True)]
    encode = Letters().encode
    assert found[0] + found[1] == encode("abcdefg")  # the end alone teaches nothing
    assert found[2:] == [[*encode("hi"), 2], [1, 2]]


def test_a_text_without_two_tokens_is_refused():
    silent = cast(Any, type("Silent", (Letters,), {"encode": lambda self, text: [], "ends": ()})())
    with pytest.raises(UserError, match="the text to recover with is empty"):
        given(silent, [""], 8)


def test_a_teacher_writes_what_it_would_say_and_up_to_an_end(teacher, monkeypatch):
    monkeypatch.setattr(distill, "PAGES", 2)
    tokens, n = written(teacher.model, cast(Any, Letters()), 12)
    again = written(teacher.model, cast(Any, Letters()), 12)
    np.testing.assert_array_equal(tokens, again.tokens)
    assert not np.array_equal(tokens, written(teacher.model, cast(Any, Letters()), 12, seed=1).tokens)
    assert tokens.shape == (8, 12)
    assert np.all(tokens[:, 0] == 1)
    for row, size in zip(tokens, n, strict=True):
        assert 2 not in row[1 : size - 1]
        assert size == 12 or row[size - 1] == 2


def test_tokens_are_drawn_by_their_probability(teacher):
    rows = 2000
    first = np.full(rows, 1, np.int32)
    tokens = np.asarray(SAMPLED(teacher.model, first, jax.random.key(0), 3))
    probabilities = np.asarray(jax.nn.softmax(teacher.logits([[1]])[0, 0]), np.float64)
    seen = np.bincount(tokens[:, 1], minlength=40) / rows
    spread = np.sqrt(probabilities * (1 - probabilities) / rows)
    assert np.all(np.abs(seen - probabilities) < 5 * spread + 1e-3)
    second = tokens[tokens[:, 1] == np.argmax(seen)][:, 2]  # the token before has its say
    probabilities = np.asarray(jax.nn.softmax(teacher.logits([[1, int(np.argmax(seen))]])[0, 1]), np.float64)
    seen = np.bincount(second, minlength=40) / len(second)
    assert np.all(np.abs(seen - probabilities) < 5 * np.sqrt(probabilities / len(second)) + 1e-2)
