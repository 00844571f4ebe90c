"""Qwen3 with experts (Yang et al. 2025, arXiv:2505.09388): 128 small ones a layer, eight for each token."""

from collections.abc import Callable

from ..config import Config, Fields
from . import qwen3
from .from_gguf import attention_from_gguf, decoder_from_gguf, moe_from_gguf
from .from_hf import attention_from_hf, decoder_from_hf, mlp_from_hf, moe_from_hf, window_from_hf
from .llama import HARMLESS_TENSORS, gate_up  # noqa: F401
from .tensors import Experts, Source, Tensor
from .to_gguf import Metadata, decoder_to_gguf

HF, GGUF = ("qwen3_moe",), ("qwen3moe",)

MLP = "model.layers.{i}.mlp."
MOE_TENSORS = {
    "moe.norm": Tensor("model.layers.{i}.post_attention_layernorm.weight"),
    "moe.router": Tensor(MLP + "gate.weight"),
    "moe.gate_up": Experts(gate_up(MLP + "experts.{e}.")),
    "moe.down": Experts(Tensor(MLP + "experts.{e}.down_proj.weight")),
}
HF_TENSORS = qwen3.HF_TENSORS | MOE_TENSORS
GGUF_TENSORS = qwen3.GGUF_TENSORS


def config_from_hf(fields: Fields) -> Config:
    """Config from the fields of config.json; some layers may have a plain feed-forward layer."""
    fields.only("attention_bias", False)
    window = window_from_hf(fields, absent=4096) if fields.flag("use_sliding_window", False) else None
    attention = attention_from_hf(fields, qk_norm="head", window=window)
    moe = moe_from_hf(fields, normalise=fields.flag("norm_topk_prob", False))
    sparse = sparse_layers(fields)
    unused = ("intermediate_size", *(() if window else ("sliding_window", "max_window_layers")))
    return decoder_from_hf(
        fields, lambda i: (attention, moe if sparse(i) else mlp_from_hf(fields)), harmless=unused
    )


def sparse_layers(fields: Fields) -> Callable[[int], bool]:
    """Which layers have experts: every `decoder_sparse_step`-th, but for those that are listed."""
    dense = fields.indices("mlp_only_layers", fields.layer_count("num_hidden_layers"))
    step = fields.integer("decoder_sparse_step", 1)
    return lambda i: i not in dense and (i + 1) % step == 0


def config_from_gguf(fields: Fields, source: Source) -> Config:
    """Config from the `qwen3moe.*` metadata; every layer has experts."""
    fields.integer("feed_forward_length", 1)  # of plain layers, of which there are none
    blocks = attention_from_gguf(fields, source, qk_norm="head"), moe_from_gguf(fields)
    return decoder_from_gguf(fields, source, lambda i: blocks, arch="qwen3moe")


def gguf_metadata(config: Config) -> Metadata:
    """The `qwen3moe.*` metadata of a config."""
    return decoder_to_gguf(config, "qwen3moe")
