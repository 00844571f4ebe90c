"""Stretched rotary frequencies: what must hold for every method, and live agreement with transformers."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm import rope
from minillm.archs.from_hf import rope_from_hf
from minillm.config import Fields
from minillm.errors import UserError
from minillm.ops import apply_rope, rope_frequencies

heads = st.sampled_from([2, 6, 8, 64, 128])
thetas = st.sampled_from([77.0, 1e4, 5e5, 1e6])
factors = st.floats(1.0, 64.0)
originals = st.sampled_from([128, 2048, 8192])


def freqs(made: rope.Rope) -> np.ndarray:
    return np.array(made.freqs)


def llama3(k, theta, factor, original):
    return rope.llama3(k, theta, factor, 1.0, 4.0, original)


def yarn(k, theta, factor, original):
    return rope.yarn(k, theta, factor, original)


def longrope(stretch, original, k=8, theta=1e4):
    ones = [1.0] * (k // 2)
    return rope.longrope(k, theta, ones, ones, stretch, original, original)


@given(heads, thetas, originals)
def test_a_factor_of_one_stretches_nothing(k, theta, original):
    for made in (
        rope.linear(k, theta, 1.0),
        llama3(k, theta, 1.0, original),
        yarn(k, theta, 1.0, original),
        longrope(1.0, original, k, theta),
    ):
        np.testing.assert_allclose(freqs(made), rope_frequencies(k, theta), rtol=2e-7)
        assert made.scale == 1.0


@given(heads, thetas, factors, originals)
def test_every_pair_turns_between_as_trained_and_factor_times_slower(k, theta, factor, original):
    trained = freqs(rope.default(k, theta))
    slowest = freqs(rope.linear(k, theta, factor))
    np.testing.assert_allclose(slowest, trained / factor, rtol=2e-7)
    for made in (llama3(k, theta, factor, original), yarn(k, theta, factor, original)):
        assert np.all(freqs(made) <= trained * (1 + 1e-6))
        assert np.all(freqs(made) >= slowest * (1 - 1e-6))


@given(heads, thetas, factors, originals)
def test_llama3_leaves_pairs_of_many_turns_and_slows_those_of_less_than_one(k, theta, factor, original):
    trained, made = freqs(rope.default(k, theta)), freqs(llama3(k, theta, factor, original))
    turns = original * trained / (2 * np.pi)
    np.testing.assert_allclose(made[turns >= 4.001], trained[turns >= 4.001], rtol=2e-7)
    np.testing.assert_allclose(made[turns <= 0.999], trained[turns <= 0.999] / factor, rtol=2e-7)


@given(thetas, factors, originals)
def test_yarn_leaves_pairs_of_many_turns_and_slows_those_of_less_than_one(theta, factor, original):
    trained, made = freqs(rope.default(128, theta)), freqs(yarn(128, theta, factor, original))
    turns = original * trained / (2 * np.pi)
    pair = theta ** (2 / 128)  # the ramp's ends are rounded outwards to whole pairs
    fast, slow = turns > 32 * pair**1.01, turns < 1 / pair**1.01
    np.testing.assert_allclose(made[fast], trained[fast], rtol=2e-7)
    np.testing.assert_allclose(made[slow], trained[slow] / factor, rtol=2e-7)


@given(st.floats(1.0001, 64.0), st.floats(1.0001, 64.0))
def test_the_factor_on_queries_and_keys_grows_with_the_stretch(factor, other):
    low, high = sorted((factor, other))
    assert 1.0 < rope.yarn_scale(low) <= rope.yarn_scale(high)
    scales = [longrope(stretch, 4096).scale for stretch in (low, high)]
    assert 1.0 < scales[0] <= scales[1]


def test_scales_are_those_of_the_papers():
    assert rope.yarn(64, 1e4, 16.0, 4096).scale == pytest.approx(0.1 * math.log(16.0) + 1)
    # Phi-3's 128k model has 4,096 tokens stretched 32 times
    assert longrope(32.0, 4096).scale == pytest.approx(1.190238071)


@pytest.mark.parametrize(("context", "factor"), [(100, 2.0), (4096, 2.0), (4097, 8.0), (100_000, 8.0)])
def test_longrope_takes_its_long_factors_beyond_the_original_context(context, factor):
    made = rope.longrope(8, 1e4, [2.0] * 4, [8.0] * 4, 32.0, 4096, context)
    np.testing.assert_allclose(freqs(made), rope_frequencies(8, 1e4) / factor, rtol=2e-7)


def test_the_scale_is_on_turned_channels_only():
    x = np.random.default_rng(0).normal(size=(1, 5, 2, 8)).astype(np.float32)
    pos = jnp.arange(5, dtype=jnp.int32)[None]
    plain = rope.default(4, 100.0)
    y = rope.Rope(plain.freqs, 1.5).turn(jnp.asarray(x), pos)
    turned = apply_rope(jnp.asarray(x), pos, jnp.asarray(plain.freqs, jnp.float32))
    np.testing.assert_allclose(y[..., :4], 1.5 * turned[..., :4], rtol=1e-6)
    np.testing.assert_array_equal(y[..., 4:], x[..., 4:])


LONG = {"long_factor": [1.0, 2.0, 3.5, 8.0], "short_factor": [1.0, 1.1, 1.2, 1.5]}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALINGS = {
    "default": {},
    "partial": {"rope_type": "default", "partial_rotary_factor": 0.5},
    "linear": {"factor": 3.0},
    "llama3": LLAMA3 | {"original_max_position_embeddings": 512},
    "llama3 without original": LLAMA3 | {"rope_type": "llama3"},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 512},
    "yarn to the last word": {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 256,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "truncate": False,
        "attention_factor": 1.3,
    },
    "yarn with two weights": {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 256,
        "mscale": 1.0,
        "mscale_all_dim": 0.707,
    },
    "longrope": LONG | {"original_max_position_embeddings": 512},
    "longrope by factor": LONG | {"rope_type": "longrope", "factor": 5.0, "original_max_position_embeddings": 512},
    "longrope by attention_factor": LONG
    | {"rope_type": "longrope", "attention_factor": 1.7, "original_max_position_embeddings": 512},
}
CONFIG = {"hidden_size": 32, "num_attention_heads": 4, "head_dim": 8, "max_position_embeddings": 4096}


def fields(name: str, **more) -> Fields:
    parameters = {"rope_type": name, "rope_theta": 5000.0} | SCALINGS[name]
    return Fields(CONFIG | {"rope_parameters": parameters} | more, "config.json")


@pytest.mark.parametrize("name", SCALINGS)
def test_older_files_say_the_same_in_other_words(name):
    new = fields(name).values
    scaling = dict(new["rope_parameters"])
    scaling["type"] = scaling.pop("rope_type")
    old = CONFIG | {key: scaling.pop(key) for key in ("rope_theta", "partial_rotary_factor") if key in scaling}
    old |= {"rope_scaling": scaling}
    k = 8
    assert rope_from_hf(Fields(old, "config.json"), k) == rope_from_hf(Fields(new, "config.json"), k)


@pytest.mark.parametrize("name", SCALINGS)
def test_a_word_that_is_not_understood_is_refused(name):
    asked = fields(name)
    asked.values["rope_parameters"]["swirl"] = 2.0
    with pytest.raises(UserError, match=r"config.json: rope_parameters: swirl = 2.0 is not supported"):
        rope_from_hf(asked, 8)


def test_layers_of_an_unknown_type_are_refused():
    turns = {"full_attention": {"rope_theta": 1e4}, "chunked_attention": {"rope_theta": 1e4}}
    with pytest.raises(UserError, match="chunked_attention"):
        rope_from_hf(Fields(CONFIG | {"rope_parameters": turns}, "config.json"), 8, "full_attention")


@pytest.mark.oracle
@pytest.mark.parametrize("context", [300, 4096])
@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_are_those_of_transformers(name, context):
    from transformers import LlamaConfig  # pyright: ignore[reportMissingImports]
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # pyright: ignore[reportMissingImports]
    from transformers.models.phi3.modeling_phi3 import (  # pyright: ignore[reportMissingImports]
        Phi3RotaryEmbedding,
    )

    ours = rope_from_hf(Fields(fields(name).values, "config.json", context), 8)
    config = LlamaConfig(**fields(name).values)
    kind = config.rope_parameters["rope_type"]
    plain = Phi3RotaryEmbedding.compute_default_rope_parameters  # Llama's own knows no partial rotary
    expected, scale = ROPE_INIT_FUNCTIONS.get(kind, plain)(config, device=None, seq_len=context)
    np.testing.assert_allclose(freqs(ours), expected.numpy(), rtol=1e-6)
    assert ours.scale == pytest.approx(scale, rel=1e-12)
