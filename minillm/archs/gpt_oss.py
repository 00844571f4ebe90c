"""gpt-oss (OpenAI 2025, arXiv:2508.10925): experts with clamped SwiGLU, attention with sinks, biases everywhere.

Every other layer looks back a window only.
"""

from ..config import Config, Fields
from ..ops.activations import GELU_SLOPE
from . import qwen2
from .from_gguf import attention_from_gguf, decoder_from_gguf, moe_from_gguf, rope_from_gguf, window_from_gguf
from .from_hf import attention_from_hf, decoder_from_hf, moe_from_hf, window_from_hf, windows_from_hf
from .llama import HARMLESS_TENSORS  # noqa: F401
from .tensors import ByPart, Source, Stack, Tensor, Transposed
from .to_gguf import Metadata, decoder_to_gguf

HF, GGUF = ("gpt_oss",), ("gpt-oss",)

# An expert's channels lie gate beside up in its first matrix, and both matrices are [in, out].
LAYER, MLP = "model.layers.{i}.", "model.layers.{i}.mlp."
HF_TENSORS = qwen2.HF_TENSORS | {
    "attention.out.bias": Tensor(LAYER + "self_attn.o_proj.bias"),
    "attention.sinks": Tensor(LAYER + "self_attn.sinks"),
    "moe.norm": Tensor(LAYER + "post_attention_layernorm.weight"),
    "moe.router": Tensor(MLP + "router.weight"),
    "moe.router.bias": Tensor(MLP + "router.bias"),
    # an expert's outputs come as f pairs of gate and up
    "moe.gate_up": ByPart(Transposed(Tensor(MLP + "experts.gate_up_proj")), heads="f", parts=("", ""), axis=1),
    "moe.gate_up.bias": ByPart(Tensor(MLP + "experts.gate_up_proj_bias"), heads="f", parts=("", ""), axis=1),
    "moe.down": Transposed(Tensor(MLP + "experts.down_proj")),
    "moe.down.bias": Tensor(MLP + "experts.down_proj_bias"),
}
GGUF_TENSORS = qwen2.GGUF_TENSORS | {
    "attention.out.bias": Tensor("blk.{i}.attn_output.bias"),
    "attention.sinks": Tensor("blk.{i}.attn_sinks.weight"),
    "moe.norm": Tensor("blk.{i}.post_attention_norm.weight"),
    "moe.router.bias": Tensor("blk.{i}.ffn_gate_inp.bias"),
    "moe.gate_up.bias": Stack((Tensor("blk.{i}.ffn_gate_exps.bias"), Tensor("blk.{i}.ffn_up_exps.bias")), axis=1),
    "moe.down.bias": Tensor("blk.{i}.ffn_down_exps.bias"),
}

LIMIT = 7.0  # of the clamp, where a file does not say


def config_from_hf(fields: Fields) -> Config:
    """Config from the fields of config.json."""
    fields.only("attention_bias", True)
    fields.only("hidden_act", "silu")
    fields.only("swiglu_alpha", GELU_SLOPE)
    fields.require(fields.has("rope_parameters") or fields.has("rope_scaling"), "rope_parameters", "an object")
    windows = windows_from_hf(fields, window_from_hf(fields, absent=128), lambda i: i % 2 == 0)
    moe = moe_from_hf(fields, "intermediate_size", bias=True, clamp=fields.number("swiglu_limit", LIMIT))
    fields.only("experts_per_token", moe.top_k)

    def layer(i: int):
        return attention_from_hf(fields, theta=150000.0, bias="all", sinks=True, window=windows[i]), moe

    return decoder_from_hf(fields, layer, harmless=("initial_context_length",))


def config_from_gguf(fields: Fields, source: Source) -> Config:
    """Config from the `gpt-oss.*` metadata; its YaRN was trained with a ramp whose ends are not rounded."""
    fields.only("attention.sliding_window_pattern", 2)
    fields.integer("feed_forward_length", 1)  # of plain layers, of which there are none
    window, moe = window_from_gguf(fields), moe_from_gguf(fields, bias=True, clamp=LIMIT)
    rope = rope_from_gguf(fields, source, fields.integer("attention.key_length"), truncate=False)

    def layer(i: int):
        near = window if i % 2 == 0 else None
        return attention_from_gguf(fields, source, rope=rope, bias="all", sinks=True, window=near), moe

    return decoder_from_gguf(fields, source, layer, arch="gpt-oss")


def gguf_metadata(config: Config) -> Metadata:
    """The `gpt-oss.*` metadata of a config."""
    return decoder_to_gguf(config, "gpt-oss")
