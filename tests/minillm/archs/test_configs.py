"""What config files of transformer families say in more than one way, and what they must not say."""

import json
import math
from typing import Any, cast

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file
from tiny import config, settings, without

import minillm
from minillm.blocks import AttentionSpec, MambaSpec, MLPSpec, MoESpec
from minillm.cache import StateSpec
from minillm.config import Config
from minillm.errors import UserError

pytestmark = pytest.mark.usefixtures("quick_programs")


def windows(config: Config) -> list[int | None]:
    return [layer[0].window for layer in config.layers]


# Files written before `layer_types` was invented, in which a rule says which layers have a window.
BY_RULE = ["qwen2_0", "qwen2_1", "qwen3_0", "gemma2_0", "gemma2_2", "gemma3_text_1", "gemma3_text_2", "smollm3_0"]


@pytest.mark.parametrize("name", BY_RULE)
def test_a_rule_gives_the_windows_that_are_listed(name, tmp_path):
    listed = settings(name, tmp_path)
    assert config(without(listed, "layer_types", "no_rope_layers")) == config(listed)


def test_a_gemma3_of_older_files_has_its_two_bases_beside_the_sizes(tmp_path):
    new = settings("gemma3_text_0", tmp_path)
    old = without(new, "rope_parameters", rope_local_base_freq=100.0, rope_theta=5000.0)
    old["rope_scaling"] = {"rope_type": "linear", "factor": 8.0}
    assert config(old) == config(new)


def test_a_gemma3_that_says_nothing_of_rope_has_its_usual_bases(tmp_path):
    values = settings("gemma3_text_2", tmp_path)
    local, everywhere = (config(without(values, "rope_parameters")).layers[i][0].rope for i in (0, 5))
    assert local.freqs[1] == pytest.approx(1e4 ** (-2 / 6))
    assert everywhere.freqs[1] == pytest.approx(1e6 ** (-2 / 6))


@pytest.mark.parametrize(("name", "base"), [("smollm3_0", 2e6), ("mixtral_0", 1e6), ("llama_0", 1e4)])
def test_a_base_that_is_left_out_is_the_family_s_own(name, base, tmp_path):
    values = without(settings(name, tmp_path), "rope_parameters", "rope_theta", "rope_scaling")
    ropes = {block.rope for layer in config(values).layers for block in layer[:1]} - {None}
    assert {rope.recipe.theta for rope in ropes} == {base}


def test_a_mistral_that_says_nothing_of_windows_has_its_first_one_and_null_means_none(tmp_path):
    values = settings("mistral_0", tmp_path)
    assert windows(config(without(values, "sliding_window"))) == [4096, 4096]
    assert windows(config(values | {"sliding_window": None})) == [None, None]


@pytest.mark.parametrize(("context", "factor"), [(None, 9.0), (257, 9.0), (256, 2.0), (20, 2.0)])
def test_a_phi3_takes_its_factors_by_the_context_it_is_opened_for(context, factor, tmp_path):
    rope = config(settings("phi3_1", tmp_path), context).layers[0][0].rope
    assert rope.freqs[-1] == pytest.approx(1e4 ** (-6 / 8) / factor)
    assert rope.scale == pytest.approx(math.sqrt(1 + math.log(1024 / 256) / math.log(256)))


REFUSED = {
    "layer_types is": ("qwen2_0", {"use_sliding_window": False}),
    "max_window_layers is -1": ("qwen2_0", {"max_window_layers": -1}),
    "layer_types is None, expected a sliding_window": ("gemma2_0", {"sliding_window": None, "layer_types": None}),
    "attn_logit_softcapping is 50.0": ("gemma3_text_0", {"attn_logit_softcapping": 50.0}),
    "use_bidirectional_attention is True": ("gemma3_text_0", {"use_bidirectional_attention": True}),
    "hidden_activation is 'relu'": ("gemma2_0", {"hidden_activation": "relu"}),
    "chunked_attention": ("gemma2_0", {"layer_types": ["chunked_attention", "full_attention"]}),
    "n_embd is 32, expected a multiple of n_head = 5": ("gpt2_0", {"n_head": 5}),
    "add_cross_attention is True": ("gpt2_0", {"add_cross_attention": True}),
    "no_rope_layers is": ("smollm3_0", {"no_rope_layers": [1, 2]}),
    "interpolate_factor is 2": ("phi3_0", {"interpolate_factor": 2}),
    "rms_norm_eps is missing": ("phi3_0", {"rms_norm_eps": None}),
    "head_dim is 15, expected an even number": ("gemma3_text_0", {"head_dim": 15}),
    "rope_theta is 1, expected a number above 1": ("llama_0", {"rope_theta": 1, "rope_parameters": None}),
    "rope_scaling is .*, which is not supported": ("llama_0", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    "rope_type is 'spiral'": ("llama_0", {"rope_parameters": {"rope_type": "spiral"}}),
    "high_freq_factor is 1, expected more than low_freq_factor": (
        "llama_4",
        {"rope_parameters": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 2, "high_freq_factor": 1}},
    ),
    "partial_rotary_factor is 0.3": ("phi3_0", {"rope_parameters": {"partial_rotary_factor": 0.3}}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_not_supported_is_refused_by_field(message, tmp_path):
    name, change = REFUSED[message]
    with pytest.raises(UserError, match=message):
        config(settings(name, tmp_path) | change)


def test_a_checkpoint_that_sees_as_well_is_refused_by_its_name(tmp_path):
    values = {"model_type": "gemma3", "text_config": settings("gemma3_text_0", tmp_path), "vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"model_type is 'gemma3', not supported; .* gemma3_text"):
        minillm.load(tmp_path)


def test_a_gpt2_may_be_saved_without_its_head_and_with_its_masks(tmp_path):
    golden = tiny.unpacked("gpt2_0", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {name.removeprefix("transformer."): array for name, array in tensors.items()}
    tensors["h.0.attn.bias"] = np.tril(np.ones((1, 1, 560, 560), np.float32))
    save_file(tensors, tmp_path / "model.safetensors")
    tiny.assert_agrees(minillm.load(tmp_path).logits(golden["tokens"][None])[0, golden["places"]], golden["logits"])


def test_a_gpt2_opened_for_less_has_all_its_positions_and_takes_no_more_tokens(tmp_path):
    golden = tiny.unpacked("gpt2_0", tmp_path)
    lm, tokens = minillm.load(tmp_path, context=40), golden["tokens"][None]
    places = golden["places"][golden["places"] < 40]
    expected = golden["logits"][: len(places)]
    tiny.assert_agrees(lm.logits(tokens[:, :40])[0, places], expected)
    with pytest.raises(UserError, match="context is 40"):
        lm.logits(tokens[:, :41])


@pytest.mark.oracle
@pytest.mark.parametrize(("context", "length"), [(256, 256), (100, 90), (1024, 300)])
def test_a_phi3_opened_for_a_context_computes_what_transformers_does_within_it(context, length, tmp_path):
    tokens = tiny.SCRIPT["write_tiny"](tmp_path, "phi3", 1, seed=50)[:length]
    expected = tiny.SCRIPT["reference_logits"](tmp_path, tokens)
    tiny.assert_agrees(minillm.load(tmp_path, context=context).logits(tokens[None])[0], expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: AttentionSpec(4, 2, 8, None, qk_norm=cast(Any, "heads")),
            "qk_norm is 'heads', expected one of '', 'head', 'all'",
        ),
        (lambda: AttentionSpec(4, 3, 8, None), "h is 4, expected a multiple of g = 3"),
        (lambda: AttentionSpec(4, 2, 8, None, window=0), "window is 0"),
        (lambda: MLPSpec(8, cast(Any, "relu")), "activation is 'relu'"),
        (lambda: MambaSpec(8, 4, 2, norms=cast(Any, "weights")), "norms is 'weights'"),
        (lambda: MoESpec(4, 8, 5), "top_k is 5, expected at most e = 4"),
        (lambda: Config("toy", 8, 9, 10, (), True, norm=cast(Any, "rmsnorm")), "norm is 'rmsnorm'"),
        (lambda: StateSpec(1, 8, dtype="int16"), "dtype is int16, expected int8, fp8 or a floating-point one"),
    ],
)
def test_a_description_that_cannot_be_meant_is_refused_when_it_is_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()
