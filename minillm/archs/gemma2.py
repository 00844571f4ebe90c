"""Gemma 2 (Riviere et al. 2024, arXiv:2408.00118): every other layer looks back a window only.

Besides, each block's output has a norm as well as its input, and scores and logits are bounded smoothly.
"""

from ..config import Config, Fields
from . import gemma
from .from_gguf import attention_from_gguf, decoder_from_gguf, mlp_from_gguf, window_from_gguf
from .from_hf import attention_from_hf, decoder_from_hf, window_from_hf, windows_from_hf
from .gemma import embed_scale_from_hf, geglu_from_hf
from .llama import HARMLESS_TENSORS  # noqa: F401
from .tensors import Plus, Source, Tensor
from .to_gguf import Metadata, decoder_to_gguf

HF, GGUF = ("gemma2",), ("gemma2",)

HF_TENSORS = gemma.HF_TENSORS | {
    "attention.post_norm": Plus(Tensor("model.layers.{i}.post_attention_layernorm.weight"), 1.0),
    "mlp.norm": Plus(Tensor("model.layers.{i}.pre_feedforward_layernorm.weight"), 1.0),
    "mlp.post_norm": Plus(Tensor("model.layers.{i}.post_feedforward_layernorm.weight"), 1.0),
}
GGUF_TENSORS = gemma.GGUF_TENSORS | {
    "attention.post_norm": Tensor("blk.{i}.post_attention_norm.weight"),
    "mlp.post_norm": Tensor("blk.{i}.post_ffw_norm.weight"),
}

LAYERS_OF_27B = 46  # and of no other size: llama.cpp knows by it which one has a scale of scores of its own


def config_from_hf(fields: Fields) -> Config:
    """Config from the fields of config.json."""
    windows = windows_from_hf(fields, window_from_hf(fields, absent=4096), lambda i: i % 2 == 0)
    scale, softcap = scale_from_hf(fields), softcap_from_hf(fields, "attn_logit_softcapping", 50.0)
    mlp = geglu_from_hf(fields, post_norm=True)

    def layer(i: int):
        return attention_from_hf(fields, window=windows[i], softcap=softcap, scale=scale, post_norm=True), mlp

    return decoder_from_hf(
        fields,
        layer,
        tied=True,
        harmless=("cache_implementation", "sliding_window_size"),
        embed_scale=embed_scale_from_hf(fields),
        softcap=softcap_from_hf(fields, "final_logit_softcapping", 30.0),
    )


def scale_from_hf(fields: Fields) -> float:
    """What scores are multiplied by."""
    return fields.number("query_pre_attn_scalar", 256.0) ** -0.5


def softcap_from_hf(fields: Fields, key: str, absent: float | None = None) -> float | None:
    """A bound of scores or logits; None if the file says null, `absent` if it says nothing."""
    fields.read.add(key)
    if key not in fields.values:
        return absent
    return fields.number(key) if fields.has(key) else None


def config_from_gguf(fields: Fields, source: Source) -> Config:
    """Config from the `gemma2.*` metadata."""
    window, softcap = window_from_gguf(fields) or 4096, fields.number("attn_logit_softcapping", 50.0)
    scale = scale_from_gguf(fields, LAYERS_OF_27B)
    mlp = mlp_from_gguf(fields, activation="gelu_tanh", post_norm=True)

    def layer(i: int):
        choices = {"window": window if i % 2 == 0 else None, "softcap": softcap, "scale": scale}
        return attention_from_gguf(fields, source, post_norm=True, **choices), mlp

    return decoder_from_gguf(
        fields,
        source,
        layer,
        arch="gemma2",
        embed_scale=fields.integer("embedding_length") ** 0.5,
        softcap=fields.number("final_logit_softcapping", 30.0),
    )


def scale_from_gguf(fields: Fields, layers_of_27b: int) -> float | None:
    """What scores are multiplied by: in the 27B models 1/sqrt(d/h), which is not the usual 1/sqrt(k)."""
    if fields.integer("block_count") != layers_of_27b:
        return None
    return (fields.integer("embedding_length") // fields.integer("attention.head_count")) ** -0.5


def gguf_metadata(config: Config) -> Metadata:
    """The `gemma2.*` metadata of a config."""
    bounds = {"attn_logit_softcapping": config.layers[0][0].softcap, "final_logit_softcapping": config.softcap}
    return decoder_to_gguf(config, "gemma2", {name: bound for name, bound in bounds.items() if bound is not None})
