"""`minillm.init`: a model of any family from a config alone."""

import json

import jax
import numpy as np
import pytest
import tiny

import minillm
from minillm.archs import find_hf
from minillm.errors import UserError

pytestmark = pytest.mark.usefixtures("quick_programs")

CONFIG = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 40,
    "rms_norm_eps": 1e-5,
}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_config_alone_makes_a_model_like_the_checkpoint(family, tmp_path):
    tiny.unpacked(f"{family}_0", tmp_path)
    loaded = minillm.load(tmp_path)
    made = minillm.init(json.loads((tmp_path / "config.json").read_text()))
    assert jax.tree.map(lambda leaf: leaf.shape, made.model) == jax.tree.map(lambda leaf: leaf.shape, loaded.model)
    for leaf in jax.tree.leaves(made.model):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize("family", tiny.quick("llama", "jamba", "qwen3_next"))
def test_what_is_made_runs(family, tmp_path):
    tiny.unpacked(f"{family}_0", tmp_path)
    made = minillm.init(json.loads((tmp_path / "config.json").read_text()))
    logits = made.logits(np.arange(20)[None] % made.config.v)
    assert np.isfinite(logits).all()
    assert logits.std() > 0


def test_the_same_seed_makes_the_same_weights_and_another_seed_others():
    one, again, other = (minillm.init(CONFIG, seed).model for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(again), strict=True))
    assert not np.array_equal(one.embed.dense(), other.embed.dense())


def test_a_model_without_a_tokenizer_generates_from_token_ids():
    out = minillm.init(CONFIG).generate([1, 2, 3], max_tokens=4, temperature=0.0)
    assert len(out.tokens) == 4


def test_a_config_that_is_not_understood_is_refused_by_field():
    with pytest.raises(UserError, match="config: hidden_act is 'relu'"):
        minillm.init(CONFIG | {"hidden_act": "relu"})


@pytest.mark.parametrize("config", [None, [], "llama"])
def test_what_is_no_config_is_refused(config):
    with pytest.raises(UserError, match=f"config is a {type(config).__name__}, expected a Config or"):
        minillm.init(config)


def test_a_family_from_outside_can_be_drawn_too():
    made = minillm.init(CONFIG | {"model_type": "mine"}, arch=find_hf("llama", "test"))
    assert made.config.arch == "mine"
