"""Qwen2 (Yang et al. 2024, arXiv:2407.10671): Llama with biases on queries, keys and values.

The upper layers may look back a window only: by a list of kinds, or from some layer on.
"""

from collections.abc import Callable
from typing import Any

from ..blocks import AttentionSpec
from ..config import Config, Fields
from . import llama
from .from_gguf import attention_from_gguf, decoder_from_gguf, mlp_from_gguf
from .from_hf import attention_from_hf, decoder_from_hf, mlp_from_hf, window_from_hf, windows_from_hf
from .llama import HARMLESS_TENSORS  # noqa: F401
from .tensors import Source, Stack, Tensor
from .to_gguf import Metadata, decoder_to_gguf

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


def windowed_attention(fields: Fields, **choices: Any) -> Callable[[int], AttentionSpec]:
    """attention(i) of Qwen's models, in which the layers from `max_window_layers` on may have a window."""
    first, window = fields.integer("max_window_layers", 28, least=0), window_from_hf(fields, absent=4096)
    if not fields.flag("use_sliding_window", False):
        window = None  # most files have one all the same
    windows = windows_from_hf(fields, window, lambda i: window is not None and i >= first)
    return lambda i: attention_from_hf(fields, window=windows[i], **choices)


def config_from_gguf(fields: Fields, source: Source) -> Config:
    """Config from the `qwen2.*` metadata."""
    blocks = attention_from_gguf(fields, source, bias="qkv"), mlp_from_gguf(fields)
    return decoder_from_gguf(fields, source, lambda i: blocks, arch="qwen2")


def gguf_metadata(config: Config) -> Metadata:
    """The `qwen2.*` metadata of a config."""
    return decoder_to_gguf(config, "qwen2")
