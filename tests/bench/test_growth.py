"""What grows is what is meant to, and bytes are those that a step must read."""

import jax
import pytest

import minillm
from bench import growth
from bench.growth import Line, Step

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 64}
SMALL |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512}
SMALL |= {"rms_norm_eps": 1e-5, "tie_word_embeddings": True}


def test_along_a_line_one_thing_grows():
    asked = growth.lines(longest=4096)
    assert {line.grows for line in asked.values()} == {"context", "batch", "depth", "vocabulary", "experts"}
    for line in asked.values():
        steps = [line.step(size) for size in line.sizes]
        configs = [{*step.config.items()} for step in steps]
        differing = {name for one in configs for name, _ in one ^ configs[0]}
        differing |= {what for what in ("batch", "context") if len({getattr(step, what) for step in steps}) > 1}
        assert len(differing) == 1
        assert sorted(line.sizes) == [*line.sizes]
        assert max(step.context for step in steps) <= 4096


def test_of_experts_only_those_that_are_chosen_are_read():
    config = SMALL | {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
    lm = minillm.init(config)
    experts = sum(leaf.nbytes for leaf in jax.tree.leaves(lm.model) if leaf.ndim == 3)
    others = sum(leaf.nbytes for leaf in jax.tree.leaves(lm.model)) - experts
    for batch, share in ((1, 2 / 8), (3, 6 / 8), (8, 1)):
        step = Step(config, batch)
        assert growth.bytes_of(lm, step) == others + share * experts + growth.state_bytes(lm, step)


@pytest.mark.parametrize("grows", ["batch", "vocab_size"])
def test_times_and_bytes_begin_with_one(grows, monkeypatch):
    monkeypatch.setattr(growth, "wait_for_quiet", lambda: None)
    config = SMALL | {"model_type": "llama"}
    line = {
        "batch": Line("batch", (1, 2), lambda size: Step(config, size, 32)),
        "vocab_size": Line("vocabulary", (64, 128), lambda size: Step(config | {"vocab_size": size}, 1, 32)),
    }[grows]
    report = growth.measure({"it": line}, rounds=2)
    found = report["lines"]["it"]
    assert found["growth"][0] == found["growth_of_bytes"][0] == 1
    assert found["growth_of_bytes"][1] > 1
    assert all(len(found[name]) == 2 for name in ("ms", "state_bytes", "compile_s", "growth_quartiles"))
    assert len(report["table"]["rows"]) == 1
    assert len(report["table"]["rows"][0]) == len(report["table"]["columns"])
