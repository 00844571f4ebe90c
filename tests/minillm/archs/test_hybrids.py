"""Models with recurrent layers beside attention: what they remember, what they generate, what they refuse."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

import minillm
from minillm.blocks import AttentionSpec
from minillm.cache import StateSpec
from minillm.errors import UserError

HYBRIDS = ["qwen3_next_1", "jamba_0", "bamba_0"]


@pytest.mark.parametrize("name", HYBRIDS)
def test_only_attention_remembers_more_of_a_longer_text(name, tmp_path):
    tiny.unpacked(name, tmp_path)
    lm, spec = minillm.load(tmp_path), StateSpec(slots=3, max_len=100)
    rows = sum(2 * b.g * b.k * 4 for layer in lm.config.layers for b in layer if isinstance(b, AttentionSpec))
    short, long = (lm.shapes.state_bytes(replace(spec, max_len=n)) for n in (100, 700))
    assert long - short == 3 * 600 * rows > 0
    assert short > 3 * 100 * rows


@pytest.mark.slow  # follows from test_laws, for all families
@pytest.mark.parametrize("name", HYBRIDS[:2])
def test_what_is_generated_is_what_the_logits_say(name, tmp_path):
    tokens = tiny.unpacked(name, tmp_path)["tokens"]
    lm, prompt = minillm.load(tmp_path), tokens[:37].tolist()
    out = lm.generate(prompt, max_tokens=30, temperature=0.0).tokens
    logits = lm.logits([prompt + out])[0, len(prompt) - 1 : -1]
    chosen, best = logits[np.arange(len(out)), out], logits.max(axis=-1)
    assert np.all(best - chosen <= tiny.RELATIVE * np.abs(logits).max())


def test_the_drafting_layer_of_qwen3_next_may_lie_there(tmp_path):
    tokens = tiny.unpacked("qwen3_next_0", tmp_path)["tokens"][None, :50]
    plain = minillm.load(tmp_path).logits(tokens)
    tensors = load_file(tmp_path / "model.safetensors")
    more = dict.fromkeys(
        ("mtp.fc.weight", "mtp.layers.0.mlp.experts.3.up_proj.weight"), np.ones((3, 4), np.float32)
    )
    save_file(tensors | more, tmp_path / "model.safetensors")
    assert np.array_equal(minillm.load(tmp_path).logits(tokens), plain)
    save_file(tensors | {"model.mtp.weight": np.ones(3, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.mtp\.weight is not part of"):
        minillm.load(tmp_path)


REFUSED = [
    ("qwen3_next_0", {"attention_bias": True}, "attention_bias is True"),
    ("qwen3_next_0", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ("qwen3_next_0", {"linear_num_key_heads": 3}, "linear_num_key_heads is 3, expected a divisor of linear_num_v"),
    ("qwen3_next_0", {"layer_types": ["linear_attention"]}, "layer_types is .*expected a list of 2 of"),
    ("qwen3_next_0", {"use_sliding_window": True}, "use_sliding_window is True"),
    ("qwen3_next_0", {"linear_conv_kernel_dim": 0}, "linear_conv_kernel_dim is 0"),
    ("jamba_0", {"attn_layer_offset": 2}, "attn_layer_offset is 2, expected less than attn_layer_period = 2"),
    ("jamba_0", {"mamba_inner_layernorms": False}, "mamba_inner_layernorms is False"),
    ("jamba_0", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ("jamba_0", {"sliding_window": 8}, "sliding_window is 8"),
    ("jamba_0", {"mamba_dt_rank": "half"}, "mamba_dt_rank is 'half', expected a whole number"),
    ("bamba_0", {"mamba_n_groups": 3}, "mamba_n_groups is 3, expected a divisor of mamba_n_heads = 8"),
    ("bamba_0", {"mamba_d_head": 9}, "mamba_d_head is 9"),
    ("bamba_0", {"time_step_limit": [0.0, 1.0]}, "time_step_limit is"),
    ("bamba_0", {"mlp_bias": True}, "mlp_bias is True"),
]


@pytest.mark.parametrize(("name", "settings", "message"), REFUSED)
def test_what_is_not_written_here_is_refused_by_field(name, settings, message, tmp_path):
    with pytest.raises(UserError, match=message):
        tiny.config(tiny.settings(name, tmp_path) | settings)
