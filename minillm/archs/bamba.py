"""Bamba (IBM, Princeton, CMU and UIUC 2024): Mamba-2, a few layers of attention, half of whose channels turn."""

from ..blocks import Mamba2Spec
from ..config import Config, Fields
from . import jamba, llama, mamba2
from .from_gguf import decoder_from_gguf, mlp_from_gguf, rope_from_gguf
from .from_hf import attention_from_hf, decoder_from_hf, mlp_from_hf
from .jamba import HARMLESS_TENSORS  # noqa: F401
from .tensors import Source, Tensor

HF, GGUF = ("bamba",), ("granitehybrid",)

HF_TENSORS = {
    **jamba.HF_TENSORS,
    "mamba2.norm": Tensor("model.layers.{i}.input_layernorm.weight"),
    **mamba2.mixer_tensors("model.layers.{i}.mamba."),
}

# llama.cpp's converter puts the query and key rows of whole heads in pairs, which is undone here. llama.cpp itself
# then turns the first half of the pairs, and so other channels than the authors: files are read, but not written.
GGUF_TENSORS = llama.GGUF_TENSORS | mamba2.GGUF_TENSORS

# How kernels cut the time, for how many tokens logits are wanted, and a term of the loss.
HARMLESS_FIELDS = ("mamba_chunk_size", "num_logits_to_keep", "z_loss_coefficient")


def config_from_hf(fields: Fields) -> Config:
    """Config from the fields of config.json."""
    for key in ("attention_bias", "mlp_bias"):
        fields.only(key, False)
    full = fields.indices("attn_layer_indices", fields.layer_count("num_hidden_layers"))
    recurrence = mamba2_from_hf(fields)
    attention, mlp = attention_from_hf(fields, part=0.5), mlp_from_hf(fields)
    turned = attention.rope
    assert turned is not None
    fields.only("attn_rotary_emb", 2 * len(turned.freqs))
    return decoder_from_hf(
        fields, lambda i: (attention if i in full else recurrence, mlp), harmless=HARMLESS_FIELDS
    )


def mamba2_from_hf(fields: Fields) -> Mamba2Spec:
    """The Mamba-2 layers."""
    fields.only("hidden_act", "silu")
    fields.only("time_step_limit", *mamba2.NO_LIMITS)
    h, g = fields.integer("mamba_n_heads"), fields.integer("mamba_n_groups")
    i = fields.integer("mamba_expand") * fields.integer("hidden_size")
    fields.require(i % h == 0, "mamba_n_heads", f"a divisor of mamba_expand * hidden_size = {i}")
    fields.require(h % g == 0, "mamba_n_groups", f"a divisor of mamba_n_heads = {h}")
    fields.only("mamba_d_head", "auto", i // h)
    return Mamba2Spec(
        h,
        i // h,
        n=fields.integer("mamba_d_state"),
        g=g,
        w=fields.integer("mamba_d_conv"),
        bias=fields.flag("mamba_proj_bias", False),
        conv_bias=fields.flag("mamba_conv_bias", True),
    )


def config_from_gguf(fields: Fields, source: Source) -> Config:
    """Config from the `granitehybrid.*` metadata, which Granite 4 shares; what only that has is refused."""
    fields.only("rope.scaling.finetuned", True)  # in a model without rotary positions it is false

    def half(k: int):
        fields.require(fields.values.get("rope.dimension_count") == k // 2, "rope.dimension_count", f"{k} / 2")
        return rope_from_gguf(fields, source, k)

    mixers = jamba.mixers_from_gguf(fields, mamba2.mamba2_from_gguf(fields), half)
    mlp = mlp_from_gguf(fields)
    return decoder_from_gguf(fields, source, lambda i: (mixers[i], mlp), arch="bamba")
