"""Qwen3 (Yang et al. 2025, arXiv:2505.09388): Llama with an RMSNorm of each query and key head before RoPE."""

from ..config import Config, Fields
from . import llama
from .from_gguf import attention_from_gguf, decoder_from_gguf, mlp_from_gguf
from .from_hf import decoder_from_hf, mlp_from_hf
from .llama import HARMLESS_TENSORS  # noqa: F401
from .qwen2 import HALF_SPLIT, windowed_attention
from .tensors import Source, Tensor
from .to_gguf import Metadata, decoder_to_gguf

HF, GGUF = ("qwen3",), ("qwen3",)

HF_TENSORS = llama.HF_TENSORS | {
    "attention.q_norm": Tensor("model.layers.{i}.self_attn.q_norm.weight"),
    "attention.k_norm": Tensor("model.layers.{i}.self_attn.k_norm.weight"),
}
GGUF_TENSORS = (
    llama.GGUF_TENSORS
    | HALF_SPLIT
    | {
        "attention.q_norm": Tensor("blk.{i}.attn_q_norm.weight"),
        "attention.k_norm": Tensor("blk.{i}.attn_k_norm.weight"),
    }
)


def config_from_hf(fields: Fields) -> Config:
    """Config from the fields of config.json."""
    fields.only("attention_bias", False)
    attention, mlp = windowed_attention(fields, qk_norm="head"), mlp_from_hf(fields)
    return decoder_from_hf(fields, lambda i: (attention(i), mlp))


def config_from_gguf(fields: Fields, source: Source) -> Config:
    """Config from the `qwen3.*` metadata."""
    blocks = attention_from_gguf(fields, source, qk_norm="head"), mlp_from_gguf(fields)
    return decoder_from_gguf(fields, source, lambda i: blocks, arch="qwen3")


def gguf_metadata(config: Config) -> Metadata:
    """The `qwen3.*` metadata of a config."""
    return decoder_to_gguf(config, "qwen3")
