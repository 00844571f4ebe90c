"""Bamba (IBM, Princeton, CMU and UIUC 2024): Mamba-2, a few layers of attention, half of whose channels turn."""

from ..blocks import Mamba2Spec
from ..config import Config, Fields
from ..errors import UserError
from . import jamba, mamba2
from .from_hf import attention_from_hf, decoder_from_hf, mlp_from_hf
from .jamba import HARMLESS_TENSORS  # noqa: F401
from .tensors import Source, Tensor

HF, GGUF = ("bamba",), ()

HF_TENSORS = {
    **jamba.HF_TENSORS,
    "mamba2.norm": Tensor("model.layers.{i}.input_layernorm.weight"),
    **mamba2.mixer_tensors("model.layers.{i}.mamba."),
}
GGUF_TENSORS = {}

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
    """UserError: the files put query and key rows in pairs of whole heads, of which half the channels turn."""
    raise UserError(
        f"{fields.where}: Bamba's files, which llama.cpp calls granitehybrid, are not read; expected its Hugging "
        "Face folder"
    )
