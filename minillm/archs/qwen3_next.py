"""Qwen3-Next (Qwen team 2025): for one layer of gated attention three of gated delta net, and experts in all.

Hugging Face files have norms as the difference from one, but not the one behind the delta rule, and side by side
what a head needs: its query and gate; in a delta net its query, key, values and gates. `mtp.*`, a layer that drafts
a second token, changes no logit and is not read.
"""

from ..blocks import AttentionSpec, GatedDeltaSpec, MoESpec
from ..config import Config, Fields
from . import qwen3_moe
from .from_gguf import attention_from_gguf, decoder_from_gguf, moe_from_gguf
from .from_hf import attention_from_hf, decoder_from_hf, layer_types, mlp_from_hf, moe_from_hf
from .llama import gate_up
from .qwen3_moe import sparse_layers
from .tensors import ByPart, Entry, Flat, LogOfNegative, OneRow, Plus, Source, Stack, Tensor, Transposed
from .to_gguf import Metadata, decoder_to_gguf

HF, GGUF = ("qwen3_next",), ("qwen3next",)


def gated_qkv(q: str, k: str, v: str) -> Entry:
    """Queries, then their gates, keys and values."""
    return Stack((ByPart(Tensor(q), heads="h", parts=("k", "k")), Tensor(k), Tensor(v)))


SHIFTED = ("norm", "attention.norm", "attention.q_norm", "attention.k_norm", "mlp.norm", "moe.norm")
DELTA, MLP, PROJ = (f"model.layers.{{i}}.{name}." for name in ("linear_attn", "mlp", "self_attn"))
HF_TENSORS = {
    **qwen3_moe.HF_TENSORS,
    **{name: Plus(qwen3_moe.HF_TENSORS[name], 1.0) for name in SHIFTED},
    "attention.qkv": gated_qkv(*(f"{PROJ}{name}_proj.weight" for name in "qkv")),
    "delta.norm": Plus(qwen3_moe.HF_TENSORS["attention.norm"], 1.0),
    "delta.qkvz": ByPart(Tensor(DELTA + "in_proj_qkvz.weight"), heads="g", parts=("k", "k", "r j", "r j")),
    "delta.ba": ByPart(Tensor(DELTA + "in_proj_ba.weight"), heads="g", parts=("r", "r")),
    "delta.conv": Transposed(Flat(Tensor(DELTA + "conv1d.weight"), heads="channels")),
    "delta.A_log": Tensor(DELTA + "A_log"),
    "delta.dt_bias": Tensor(DELTA + "dt_bias"),
    "delta.y_norm": Tensor(DELTA + "norm.weight"),
    "delta.out": Tensor(DELTA + "out_proj.weight"),
    "moe.shared_gate_up": gate_up(MLP + "shared_expert."),
    "moe.shared_down": Tensor(MLP + "shared_expert.down_proj.weight"),
    "moe.shared_gate": Tensor(MLP + "shared_expert_gate.weight"),
}

# llama.cpp has all norms whole, and most of the delta net part by part.
GGUF_TENSORS = {
    **qwen3_moe.GGUF_TENSORS,
    "attention.qkv": gated_qkv(*(f"blk.{{i}}.attn_{name}.weight" for name in "qkv")),
    "delta.norm": Tensor("blk.{i}.attn_norm.weight"),
    "delta.qkvz": Stack((Tensor("blk.{i}.attn_qkv.weight"), Tensor("blk.{i}.attn_gate.weight"))),
    "delta.ba": ByPart(Tensor("blk.{i}.ssm_ba.weight"), heads="g", parts=("r", "r")),
    "delta.conv": Transposed(Tensor("blk.{i}.ssm_conv1d.weight")),
    "delta.A_log": LogOfNegative(Tensor("blk.{i}.ssm_a")),
    "delta.dt_bias": Tensor("blk.{i}.ssm_dt.bias"),
    "delta.y_norm": Tensor("blk.{i}.ssm_norm.weight"),
    "delta.out": Tensor("blk.{i}.ssm_out.weight"),
    "moe.norm": Tensor("blk.{i}.post_attention_norm.weight"),
    "moe.shared_gate_up": Stack((Tensor("blk.{i}.ffn_gate_shexp.weight"), Tensor("blk.{i}.ffn_up_shexp.weight"))),
    "moe.shared_down": Tensor("blk.{i}.ffn_down_shexp.weight"),
    "moe.shared_gate": OneRow(Tensor("blk.{i}.ffn_gate_inp_shexp.weight")),
}
HARMLESS_TENSORS = (*qwen3_moe.HARMLESS_TENSORS, "mtp.*")


def config_from_hf(fields: Fields) -> Config:
    """Config from the fields of config.json."""
    for key in ("attention_bias", "use_sliding_window"):
        fields.only(key, False)
    attention = attention_from_hf(fields, part=0.25, qk_norm="head", gated=True)
    every = fields.integer("full_attention_interval", 4)
    types = layer_types(fields, "linear_attention", "full_attention")
    sparse = sparse_layers(fields)

    def layer(i: int):
        full = (i + 1) % every == 0 if types is None else types[i] == "full_attention"
        return attention if full else delta(fields), moe(fields) if sparse(i) else mlp_from_hf(fields)

    return decoder_from_hf(fields, layer, harmless=["intermediate_size"])


def delta(fields: Fields) -> GatedDeltaSpec:
    """The delta net; behind its convolution stands the feed-forward layers' activation."""
    fields.only("hidden_act", "silu")
    h, g = fields.integer("linear_num_value_heads"), fields.integer("linear_num_key_heads")
    fields.require(h % g == 0, "linear_num_key_heads", f"a divisor of linear_num_value_heads = {h}")
    k, j = fields.integer("linear_key_head_dim"), fields.integer("linear_value_head_dim")
    return GatedDeltaSpec(h, g, k, j, fields.integer("linear_conv_kernel_dim"))


def moe(fields: Fields) -> MoESpec:
    """The experts, and one that serves every token through a gate."""
    shared, normalise = fields.integer("shared_expert_intermediate_size"), fields.flag("norm_topk_prob", True)
    return moe_from_hf(fields, normalise=normalise, f_shared=shared, shared_gate=True)


def config_from_gguf(fields: Fields, source: Source) -> Config:
    """Config from the `qwen3next.*` metadata. All layers have experts, whose weights add up to one."""
    fields.integer("feed_forward_length", 1)  # of plain layers, of which there are none
    every = fields.integer("full_attention_interval", 4)
    h, g, inner = (fields.integer(f"ssm.{key}") for key in ("time_step_rank", "group_count", "inner_size"))
    fields.require(h % g == 0, "ssm.group_count", f"a divisor of ssm.time_step_rank = {h}")
    fields.require(inner % h == 0, "ssm.inner_size", f"a multiple of ssm.time_step_rank = {h}")
    net = GatedDeltaSpec(h, g, fields.integer("ssm.state_size"), inner // h, fields.integer("ssm.conv_kernel"))
    full = attention_from_gguf(fields, source, qk_norm="head", gated=True)
    experts = moe_from_gguf(fields, f_shared=fields.integer("expert_shared_feed_forward_length"), shared_gate=True)
    return decoder_from_gguf(
        fields, source, lambda i: (net if (i + 1) % every else full, experts), arch="qwen3next"
    )


def gguf_metadata(config: Config) -> Metadata:
    """The `qwen3next.*` metadata of a config."""
    full = [isinstance(mixer, AttentionSpec) for mixer, _ in config.layers]
    more = {"full_attention_interval": [*full, True].index(True) + 1}
    for experts in {ffn: None for _, ffn in config.layers if isinstance(ffn, MoESpec)}:
        more["expert_shared_feed_forward_length"] = experts.f_shared
    return decoder_to_gguf(config, "qwen3next", more)
