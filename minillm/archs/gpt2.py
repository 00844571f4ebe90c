"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm, a plain MLP with GELU, and biases everywhere."""

from ..blocks import AttentionSpec, MLPSpec
from ..config import Config, Fields
from .from_gguf import attention_from_gguf, decoder_from_gguf, mlp_from_gguf
from .from_hf import activation_from_hf, decoder_from_hf
from .tensors import Source, Tensor, Transposed
from .to_gguf import Metadata, decoder_to_gguf

HF, GGUF = ("gpt2",), ("gpt2",)

# What has a weight and a bias, by our name for the one; files of the model without its head lack the first word.
HF_LAYERS = {
    "norm": "[transformer.]ln_f",
    "attention.norm": "[transformer.]h.{i}.ln_1",
    "attention.qkv": "[transformer.]h.{i}.attn.c_attn",
    "attention.out": "[transformer.]h.{i}.attn.c_proj",
    "mlp.norm": "[transformer.]h.{i}.ln_2",
    "mlp.up": "[transformer.]h.{i}.mlp.c_fc",
    "mlp.down": "[transformer.]h.{i}.mlp.c_proj",
}
GGUF_LAYERS = {
    "norm": "output_norm",
    "attention.norm": "blk.{i}.attn_norm",
    "attention.qkv": "blk.{i}.attn_qkv",
    "attention.out": "blk.{i}.attn_output",
    "mlp.norm": "blk.{i}.ffn_norm",
    "mlp.up": "blk.{i}.ffn_up",
    "mlp.down": "blk.{i}.ffn_down",
}

HF_TENSORS = {
    "embed": Tensor("[transformer.]wte.weight"),
    "positions": Tensor("[transformer.]wpe.weight"),
    "head": Tensor("lm_head.weight"),
    **{name: Tensor(f"{where}.weight") for name, where in HF_LAYERS.items() if name.endswith("norm")},
    **{name: Transposed(Tensor(f"{where}.weight")) for name, where in HF_LAYERS.items() if "norm" not in name},
    **{f"{name}.bias": Tensor(f"{where}.bias") for name, where in HF_LAYERS.items()},
}
GGUF_TENSORS = {
    "embed": Tensor("token_embd.weight"),
    "positions": Tensor("position_embd.weight"),
    "head": Tensor("output.weight"),
    **{name: Tensor(f"{where}.weight") for name, where in GGUF_LAYERS.items()},
    **{f"{name}.bias": Tensor(f"{where}.bias") for name, where in GGUF_LAYERS.items()},
}

# The causal mask, which old files store, and a head stored though it is tied.
HARMLESS_TENSORS = ("*h.{i}.attn.bias", "*h.{i}.attn.masked_bias", "lm_head.weight")

HARMLESS_FIELDS = """
    n_ctx summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout
    reorder_and_upcast_attn
""".split()


def config_from_hf(fields: Fields) -> Config:
    """Config from the fields of config.json, most of which have names of their own."""
    d, h, trained = fields.integer("n_embd"), fields.integer("n_head"), fields.integer("n_positions")
    fields.require(d % h == 0, "n_embd", f"a multiple of n_head = {h}")
    scaled = fields.flag("scale_attn_weights", True)
    by_layer = fields.flag("scale_attn_by_inverse_layer_idx", False)
    act = activation_from_hf(fields, "activation_function", absent="gelu_new")
    mlp = MLPSpec(fields.integer("n_inner", 4 * d), act, gated=False, bias=True)

    def layer(i: int):
        scale = ((d // h) ** -0.5 if scaled else 1.0) / (i + 1 if by_layer else 1)
        return AttentionSpec(h, h, d // h, rope=None, bias="all", scale=scale), mlp

    return decoder_from_hf(
        fields,
        layer,
        d="n_embd",
        n_layers="n_layer",
        trained="n_positions",
        eps="layer_norm_epsilon",
        tied=True,
        harmless=HARMLESS_FIELDS,
        norm="layer",
        learned_positions=trained,
    )


def config_from_gguf(fields: Fields, source: Source) -> Config:
    """Config from the `gpt2.*` metadata."""
    attention = attention_from_gguf(fields, source, rope=None, bias="all")
    blocks = attention, mlp_from_gguf(fields, activation="gelu_tanh", gated=False, bias=True)
    return decoder_from_gguf(
        fields,
        source,
        lambda i: blocks,
        arch="gpt2",
        eps="attention.layer_norm_epsilon",
        norm="layer",
        learned_positions=fields.integer("context_length"),
    )


def gguf_metadata(config: Config) -> Metadata:
    """The `gpt2.*` metadata of a config."""
    positions = {"context_length": config.learned_positions}
    return decoder_to_gguf(config, "gpt2", positions, eps="attention.layer_norm_epsilon")
