"""Phi-3 (Abdin et al. 2024, arXiv:2404.14219): Llama with fused matrices, stretched to long texts by LongRoPE."""

from ..config import Config, Fields
from . import llama
from .from_gguf import attention_from_gguf, decoder_from_gguf, mlp_from_gguf, window_from_gguf
from .from_hf import attention_from_hf, decoder_from_hf, mlp_from_hf, window_from_hf
from .llama import HARMLESS_TENSORS  # noqa: F401
from .tensors import Source, Tensor
from .to_gguf import Metadata, decoder_to_gguf

HF, GGUF = ("phi3",), ("phi3",)

HF_TENSORS = llama.HF_TENSORS | {
    "attention.qkv": Tensor("model.layers.{i}.self_attn.qkv_proj.weight"),
    "mlp.gate_up": Tensor("model.layers.{i}.mlp.gate_up_proj.weight"),
}
GGUF_TENSORS = llama.GGUF_TENSORS | {
    "attention.qkv": Tensor("blk.{i}.attn_qkv.weight"),
    "mlp.gate_up": Tensor("blk.{i}.ffn_up.weight"),
}


def config_from_hf(fields: Fields) -> Config:
    """Config from the fields of config.json."""
    for key in ("attention_bias", "mlp_bias", "lm_head_bias"):
        fields.only(key, False)
    for key in ("full_attn_mod", "interpolate_factor"):
        fields.only(key, 1)
    blocks = attention_from_hf(fields, window=window_from_hf(fields)), mlp_from_hf(fields)
    return decoder_from_hf(fields, lambda i: blocks, harmless=("original_max_position_embeddings",))


def config_from_gguf(fields: Fields, source: Source) -> Config:
    """Config from the `phi3.*` metadata."""
    blocks = attention_from_gguf(fields, source, window=window_from_gguf(fields)), mlp_from_gguf(fields)
    return decoder_from_gguf(fields, source, lambda i: blocks, arch="phi3")


def gguf_metadata(config: Config) -> Metadata:
    """The `phi3.*` metadata of a config."""
    return decoder_to_gguf(config, "phi3")
