"""Training lowers what it says it does, and can be killed anywhere."""

from functools import cache
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import QUICK

import minillm
from minillm import train as training
from minillm.blocks.moe import MoE
from minillm.errors import UserError
from minillm.ops import cross_entropy_ref
from minillm.quant import Dense
from minillm.train import BALANCE, TAUGHT, Batch, fresh_state, loss, matrices, restored, save, train

SIZES = {
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
}
DENSE = SIZES | {"model_type": "llama"}
EXPERTS = SIZES | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
STATES = {"model_type": "mamba", "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
STATES |= {"layer_norm_epsilon": 1e-5}


step = jax.jit(
    cast(Any, training.train_step).__wrapped__,
    donate_argnames="state",
    static_argnames="update",
    compiler_options=QUICK,
)
optimizer = cache(training.optimizer)  # so that runs alike share a program


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Unoptimised programs; and optax mixes integers and floats, which other tests forbid."""
    monkeypatch.setattr(training, "train_step", step)
    monkeypatch.setattr(training, "optimizer", optimizer)
    with jax.numpy_dtype_promotion("standard"):
        yield


def batch(step: int = 0) -> Batch:
    rng = np.random.default_rng(step)
    return Batch(rng.integers(0, 30, (3, 8)).astype(np.int32), np.array([8, 5, 1], np.int32))


measured = jax.jit(loss, compiler_options=QUICK)


@pytest.mark.parametrize("config", [DENSE, EXPERTS, STATES], ids=["transformer", "experts", "mamba"])
def test_the_nats_are_those_of_the_next_tokens_of_each_document_by_itself(config):
    lm, (tokens, n) = minillm.init(config), batch()
    rows = [
        cross_entropy_ref(lm.logits(tokens[i, None, :end])[0, :-1], tokens[i, 1:end])
        for i, end in enumerate(n)
        if end > 1
    ]
    _, nats = measured(lm.model, Batch(tokens, n))
    np.testing.assert_allclose(nats, np.concatenate(rows).mean(), rtol=1e-5)


@pytest.mark.parametrize("config", [DENSE, EXPERTS, STATES], ids=["transformer", "experts", "mamba"])
def test_what_stands_in_padding_changes_nothing(config):
    lm, (tokens, n) = minillm.init(config), batch()
    other = np.where(np.arange(8) < n[:, None], tokens, 29)
    for one, two in zip(measured(lm.model, Batch(tokens, n)), measured(lm.model, Batch(other, n)), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6)


def test_a_teacher_of_the_same_mind_asks_for_its_own_distribution():
    model, (tokens, n) = minillm.init(DENSE).model, batch()
    total, nats = measured(model, Batch(tokens, n), model)
    logits = np.asarray(minillm.init(DENSE).logits(tokens), np.float64)
    p = np.exp(logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True)))
    asked = np.arange(1, 9) < n[:, None]
    entropy = np.mean(-np.sum(p * np.log(p), axis=-1)[asked])
    np.testing.assert_allclose(total, (1 - TAUGHT) * nats + TAUGHT * entropy, rtol=1e-5)


def test_experts_that_are_used_evenly_cost_least():
    model, found = cast(Any, minillm.init(EXPERTS).model), batch()
    total, nats = measured(model, found)
    assert total - nats > BALANCE * 0.9  # e sum f P is 1 if even; below it only where f and P disagree by chance
    undecided = Dense(jnp.zeros((4, 16))).T
    blocks = (cast(Any, b).replace(router=undecided) if isinstance(b, MoE) else b for b in model.blocks)
    total, nats = measured(model.replace(blocks=tuple(blocks)), found)
    np.testing.assert_allclose(total - nats, BALANCE, rtol=1e-3)


def test_muon_gets_the_matrices_and_adam_the_tables_and_vectors():
    lm = minillm.init(DENSE)
    chosen = matrices(lm.model)
    assert chosen.embed is None
    block = chosen.blocks[0]
    assert block.norm.weight is None
    assert block.qkv is not None
    assert block.out is not None


def test_the_loss_falls_on_a_batch_that_is_seen_again(tmp_path):
    run = train(minillm.init(DENSE).model, lambda step: batch(), 30, rate=1e-2, file=tmp_path / "s")
    losses = [nats for _, _, nats in run]
    assert losses[-1] < losses[0] - 1


@pytest.mark.parametrize("killed", [1, 2, 5])
def test_a_run_that_was_killed_ends_in_the_same_bits(killed, tmp_path):
    whole, file = tmp_path / "whole", tmp_path / "state"
    nats = [one for _, _, one in train(minillm.init(DENSE).model, batch, 6, rate=1e-2, file=whole, save_every=1)]
    first = train(minillm.init(DENSE).model, batch, 6, rate=1e-2, file=file, save_every=2)
    before = [next(first)[2] for _ in range(killed)]
    del first
    rest = list(train(minillm.init(DENSE).model, batch, 6, rate=1e-2, file=file, save_every=2))
    assert rest[0][0] == killed // 2 * 2 + 1  # it goes on after the last step that was saved
    assert before[: rest[0][0] - 1] + [one for _, _, one in rest] == nats
    assert file.read_bytes() == whole.read_bytes()


def test_the_state_of_another_model_is_refused(tmp_path):
    save(tmp_path / "s", fresh_state(minillm.init(DENSE).model, 6, 1e-2))
    with pytest.raises(UserError, match="holds the training of another model"):
        restored(tmp_path / "s", fresh_state(minillm.init(EXPERTS).model, 6, 1e-2))
