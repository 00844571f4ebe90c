"""Mixtral (Jiang et al. 2024, arXiv:2401.04088): Mistral with eight experts in each layer, two for each token."""

from ..config import Config, Fields
from . import llama
from .from_hf import attention_from_hf, decoder_from_hf, moe_from_hf, window_from_hf
from .llama import HARMLESS_TENSORS  # noqa: F401
from .mistral import gguf_metadata  # noqa: F401
from .tensors import Experts, Stack, Tensor

HF, GGUF = ("mixtral",), ()  # llama.cpp writes it as a llama

MOE = "model.layers.{i}.block_sparse_moe."
HF_TENSORS = llama.HF_TENSORS | {
    "moe.norm": Tensor("model.layers.{i}.post_attention_layernorm.weight"),
    "moe.router": Tensor(MOE + "gate.weight"),
    "moe.gate_up": Experts(Stack((Tensor(MOE + "experts.{e}.w1.weight"), Tensor(MOE + "experts.{e}.w3.weight")))),
    "moe.down": Experts(Tensor(MOE + "experts.{e}.w2.weight")),
}
GGUF_TENSORS, config_from_gguf = llama.GGUF_TENSORS, llama.config_from_gguf


def config_from_hf(fields: Fields) -> Config:
    """Config from the fields of config.json."""
    attention = attention_from_hf(fields, theta=1e6, window=window_from_hf(fields))
    blocks = attention, moe_from_hf(fields, "intermediate_size")
    return decoder_from_hf(fields, lambda i: blocks)
