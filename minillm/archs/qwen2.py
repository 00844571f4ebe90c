"""Qwen2 (Yang et al. 2024, arXiv:2407.10671): Llama with biases on queries, keys and values."""

from ..blocks import AttentionSpec
from ..config import Config, Fields
from . import llama
from .common import (
    attention_from_gguf,
    attention_from_hf,
    decoder_from_gguf,
    decoder_from_hf,
    layer_types,
    mlp_from_gguf,
    mlp_from_hf,
)
from .llama import HARMLESS_TENSORS  # noqa: F401
from .tensors import Source, Stack, Tensor

HF, GGUF = ("qwen2",), ("qwen2",)

HF_TENSORS = llama.HF_TENSORS | {
    "attention.qkv.bias": Stack(
        (
            Tensor("model.layers.{i}.self_attn.q_proj.bias"),
            Tensor("model.layers.{i}.self_attn.k_proj.bias"),
            Tensor("model.layers.{i}.self_attn.v_proj.bias"),
        )
    ),
}

# Only Llama's own files have their rows in the interleaved order.
HALF_SPLIT = {
    "attention.qkv": Stack(
        (Tensor("blk.{i}.attn_q.weight"), Tensor("blk.{i}.attn_k.weight"), Tensor("blk.{i}.attn_v.weight"))
    ),
}

GGUF_TENSORS = (
    llama.GGUF_TENSORS
    | HALF_SPLIT
    | {
        "attention.qkv.bias": Stack(
            (Tensor("blk.{i}.attn_q.bias"), Tensor("blk.{i}.attn_k.bias"), Tensor("blk.{i}.attn_v.bias"))
        ),
    }
)


def config_from_hf(fields: Fields) -> Config:
    """Config from the fields of config.json."""
    attention, mlp = windowed_attention(fields, bias="qkv"), mlp_from_hf(fields)
    return decoder_from_hf(fields, lambda i: (attention(i), mlp))


def windowed_attention(fields: Fields, **choices):
    """attention(i) of Qwen's models, in which the layers from `max_window_layers` on may have a window."""
    types = layer_types(fields, "full_attention", "sliding_attention")
    used, first = fields.flag("use_sliding_window", False), fields.integer("max_window_layers", 28)
    window = fields.integer("sliding_window") if used and fields.has("sliding_window") else None
    fields.read.add("sliding_window")  # stands there unused in most files

    def attention(i: int) -> AttentionSpec:
        sliding = i >= first if types is None else types[i] == "sliding_attention"
        return attention_from_hf(fields, window=window if sliding else None, **choices)

    return attention


def config_from_gguf(fields: Fields, source: Source) -> Config:
    """Config from the `qwen2.*` metadata."""
    blocks = attention_from_gguf(fields, source, bias="qkv"), mlp_from_gguf(fields)
    return decoder_from_gguf(fields, source, lambda i: blocks, arch="qwen2")
