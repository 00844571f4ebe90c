"""Gemma (Mesnard et al. 2024, arXiv:2403.08295): Llama with GELU in its gate and embeddings scaled by sqrt(d).

Hugging Face files have the weights of norms as their difference from one; llama.cpp's have it added.
"""

from ..blocks import MLPSpec
from ..config import Config, Fields
from . import llama
from .from_gguf import attention_from_gguf, decoder_from_gguf, mlp_from_gguf
from .from_hf import attention_from_hf, decoder_from_hf
from .llama import HARMLESS_TENSORS  # noqa: F401
from .qwen2 import HALF_SPLIT
from .tensors import Plus, Source, Tensor
from .to_gguf import Metadata, decoder_to_gguf

HF, GGUF = ("gemma",), ("gemma",)

HF_TENSORS = llama.HF_TENSORS | {
    "norm": Plus(Tensor("model.norm.weight"), 1.0),
    "attention.norm": Plus(Tensor("model.layers.{i}.input_layernorm.weight"), 1.0),
    "mlp.norm": Plus(Tensor("model.layers.{i}.post_attention_layernorm.weight"), 1.0),
}
GGUF_TENSORS = llama.GGUF_TENSORS | HALF_SPLIT


def config_from_hf(fields: Fields) -> Config:
    """Config from the fields of config.json."""
    blocks = attention_from_hf(fields), geglu_from_hf(fields)
    return decoder_from_hf(fields, lambda i: blocks, tied=True, embed_scale=embed_scale_from_hf(fields))


def geglu_from_hf(fields: Fields, post_norm: bool = False) -> MLPSpec:
    """The feed-forward layer of all Gemmas; where their files say `gelu`, its approximation is meant."""
    fields.only("attention_bias", False)
    fields.only("hidden_act", "gelu", "gelu_pytorch_tanh")
    fields.only("hidden_activation", "gelu_pytorch_tanh")
    return MLPSpec(fields.integer("intermediate_size"), "gelu_tanh", post_norm=post_norm)


def embed_scale_from_hf(fields: Fields) -> float:
    """What embeddings are multiplied by."""
    return fields.integer("hidden_size") ** 0.5


def config_from_gguf(fields: Fields, source: Source) -> Config:
    """Config from the `gemma.*` metadata."""
    blocks = attention_from_gguf(fields, source), mlp_from_gguf(fields, activation="gelu_tanh")
    scale = fields.integer("embedding_length") ** 0.5
    return decoder_from_gguf(fields, source, lambda i: blocks, arch="gemma", embed_scale=scale)


def gguf_metadata(config: Config) -> Metadata:
    """The `gemma.*` metadata of a config."""
    return decoder_to_gguf(config, "gemma")
