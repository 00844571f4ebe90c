"""Jamba (Lieber et al. 2024, arXiv:2403.19887): Mamba, one layer of attention in eight, experts in every other.

Order is what the Mamba layers are for: attention has no positions. Norms stand in front of dt, B and C, and the
weights of a token's experts are not made to sum to one.
"""

from array import array
from collections.abc import Callable
from typing import Any

from ..blocks import AttentionSpec, MambaSpec
from ..config import Config, Fields
from ..rope import Rope
from . import llama, mamba, qwen3_moe
from .from_gguf import decoder_from_gguf, mlp_from_gguf, moe_from_gguf
from .from_hf import attention_from_hf, decoder_from_hf, mlp_from_hf, moe_from_hf
from .llama import gate_up
from .tensors import Experts, Source, Tensor
from .to_gguf import Metadata, attention_to_gguf, decoder_to_gguf

HF, GGUF = ("jamba",), ("jamba",)

FFN = "model.layers.{i}.feed_forward."
HF_TENSORS = {
    **llama.HF_TENSORS,
    "norm": Tensor("model.final_layernorm.weight"),
    "mamba.norm": Tensor("model.layers.{i}.input_layernorm.weight"),
    **mamba.mixer_tensors("model.layers.{i}.mamba."),
    "mamba.dt_norm": Tensor("model.layers.{i}.mamba.dt_layernorm.weight"),
    "mamba.B_norm": Tensor("model.layers.{i}.mamba.b_layernorm.weight"),
    "mamba.C_norm": Tensor("model.layers.{i}.mamba.c_layernorm.weight"),
    "mlp.norm": Tensor("model.layers.{i}.pre_ff_layernorm.weight"),
    "mlp.gate_up": gate_up(FFN),
    "mlp.down": Tensor(FFN + "down_proj.weight"),
    "moe.norm": Tensor("model.layers.{i}.pre_ff_layernorm.weight"),
    "moe.router": Tensor(FFN + "router.weight"),
    "moe.gate_up": Experts(gate_up(FFN + "experts.{e}.")),
    "moe.down": Experts(Tensor(FFN + "experts.{e}.down_proj.weight")),
}
GGUF_TENSORS = {
    **mamba.GGUF_TENSORS,
    **qwen3_moe.GGUF_TENSORS,
    "mamba.dt_norm": Tensor("blk.{i}.ssm_dt_norm.weight"),
    "mamba.B_norm": Tensor("blk.{i}.ssm_b_norm.weight"),
    "mamba.C_norm": Tensor("blk.{i}.ssm_c_norm.weight"),
}
HARMLESS_TENSORS = llama.HARMLESS_TENSORS

# Which kernels compute, and for how many tokens logits are wanted; how many experts serve a token is read if there
# is a choice.
HARMLESS_FIELDS = """
    use_mamba_kernels use_associative_scan num_logits_to_keep calc_logits_for_entire_prompt num_experts_per_tok
""".split()


def config_from_hf(fields: Fields) -> Config:
    """Config from the fields of config.json."""
    fields.only("hidden_act", "silu")  # also in the Mamba layers
    fields.only("sliding_window", None)
    full, sparse = every(fields, "attn_layer"), every(fields, "expert_layer")
    attention, recurrence = attention_from_hf(fields, rope=None), mamba_from_hf(fields)
    mlp = moe = mlp_from_hf(fields)
    if fields.integer("num_experts") > 1:
        moe = moe_from_hf(fields, "intermediate_size", normalise=False)
    return decoder_from_hf(
        fields,
        lambda i: (attention if full(i) else recurrence, moe if sparse(i) else mlp),
        harmless=HARMLESS_FIELDS,
    )


def every(fields: Fields, name: str) -> Callable[[int], bool]:
    """Which layers are of a kind: one in each period, after an offset."""
    period, offset = fields.integer(f"{name}_period"), fields.integer(f"{name}_offset", least=0)
    fields.require(offset < period, f"{name}_offset", f"less than {name}_period = {period}")
    return lambda i: i % period == offset


def mamba_from_hf(fields: Fields) -> MambaSpec:
    """The Mamba layers."""
    fields.only("mamba_inner_layernorms", True)
    return MambaSpec(
        fields.integer("mamba_expand") * fields.integer("hidden_size"),
        n=fields.integer("mamba_d_state"),
        rank=mamba.rank_from_hf(fields, "mamba_dt_rank"),
        w=fields.integer("mamba_d_conv"),
        bias=fields.flag("mamba_proj_bias", False),
        conv_bias=fields.flag("mamba_conv_bias", True),
        norms="weighted",
        norm_eps=fields.number("rms_norm_eps"),
    )


def config_from_gguf(fields: Fields, source: Source) -> Config:
    """Config from the `jamba.*` metadata; layers with a router have experts."""
    recurrence = MambaSpec(
        fields.integer("ssm.inner_size"),
        n=fields.integer("ssm.state_size"),
        rank=fields.integer("ssm.time_step_rank"),
        w=fields.integer("ssm.conv_kernel"),
        norms="weighted",
        norm_eps=fields.number("attention.layer_norm_rms_epsilon"),
    )
    mixers = mixers_from_gguf(fields, recurrence, lambda k: None)
    mlp = moe = mlp_from_gguf(fields)
    if fields.integer("expert_count", 0, least=0) > 1:
        moe = moe_from_gguf(fields, "feed_forward_length", normalise=False)
    fields.read.add("expert_used_count")
    sparse = [f"blk.{i}.ffn_gate_inp.weight" in source.names() for i in range(len(mixers))]
    return decoder_from_gguf(fields, source, lambda i: (mixers[i], moe if sparse[i] else mlp), arch="jamba")


MOST_HEADS = 65536  # more than any model has; the number comes from a file nobody vouches for


def mixers_from_gguf(fields: Fields, recurrence: Any, rope: Callable[[int], Rope | None]) -> list[Any]:
    """What mixes tokens in each layer: attention, or where there are no KV heads the recurrence.

    rope gives the rotary positions of heads of so many channels.
    """
    d, h = fields.integer("embedding_length"), fields.integer("attention.head_count")
    k = fields.integer("attention.key_length", max(d // h, 1))
    fields.only("attention.value_length", k)
    fields.require(h <= d, "attention.head_count", f"at most embedding_length = {d}")
    fields.require(h <= MOST_HEADS, "attention.head_count", f"at most {MOST_HEADS}")
    divisors = [g for g in range(1, h + 1) if h % g == 0]
    kv, turned = fields.choices("attention.head_count_kv", fields.layer_count("block_count"), 0, *divisors), rope(k)
    return [AttentionSpec(h, g, k, rope=turned) if g else recurrence for g in kv]


def gguf_metadata(config: Config) -> Metadata:
    """The `jamba.*` metadata of a config."""
    mixers, ffns = zip(*config.layers, strict=True)
    more: dict[str, Any] = {"feed_forward_length": ffns[0].f}  # of experts, too
    for attention in {spec: None for spec in mixers if isinstance(spec, AttentionSpec)}:
        more |= attention_to_gguf(attention)
    kv = [spec.g if isinstance(spec, AttentionSpec) else 0 for spec in mixers]
    more |= {"attention.head_count_kv": array("i", kv)}
    return decoder_to_gguf(config, "jamba", more, expert_size="feed_forward_length")
