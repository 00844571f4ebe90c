"""DeepSeek-V2 and V3 (arXiv:2405.04434, arXiv:2412.19437): latent attention, experts in groups, a shared one.

V3 differs from V2 in how a token's experts are chosen. The first layers have a plain feed-forward layer. What V3's
checkpoints hold beyond the last layer predicts a second token ahead for training; it changes no logit, and is not
read.
"""

from dataclasses import replace

from .. import rope
from ..blocks import LatentAttentionSpec, MLPSpec, MoESpec
from ..config import Config, Fields
from . import llama
from .from_gguf import decoder_from_gguf, mlp_from_gguf, moe_from_gguf, rope_from_gguf
from .from_hf import decoder_from_hf, mlp_from_hf, moe_from_hf, rope_fields, rope_from_hf
from .llama import gate_up
from .qwen3_moe import MOE_TENSORS
from .tensors import ByPart, Flat, HalfSplit, Source, Stack, Tensor, Transposed
from .to_gguf import Metadata, decoder_to_gguf

HF, GGUF = ("deepseek_v2", "deepseek_v3"), ("deepseek2",)

# The channels that turn are the last ones of each head, and interleaved, in both kinds of files.
ATTENTION, MLP = "model.layers.{i}.self_attn.", "model.layers.{i}.mlp."
HF_TENSORS = {
    **llama.HF_TENSORS,
    **MOE_TENSORS,
    "attention.q": HalfSplit(Tensor(ATTENTION + "q_proj.weight"), heads="h", turned="a"),
    "attention.q_a": Tensor(ATTENTION + "q_a_proj.weight"),
    "attention.q_a_norm": Tensor(ATTENTION + "q_a_layernorm.weight"),
    "attention.q_b": HalfSplit(Tensor(ATTENTION + "q_b_proj.weight"), heads="h", turned="a"),
    "attention.kv_a": HalfSplit(Tensor(ATTENTION + "kv_a_proj_with_mqa.weight"), heads="g", turned="a"),
    "attention.kv_a_norm": Tensor(ATTENTION + "kv_a_layernorm.weight"),
    "attention.kv_b": ByPart(Tensor(ATTENTION + "kv_b_proj.weight"), heads="h", parts=("k", "j")),
    "moe.choice_bias": Tensor(MLP + "gate.e_score_correction_bias"),
    "moe.shared_gate_up": gate_up(MLP + "shared_experts."),
    "moe.shared_down": Tensor(MLP + "shared_experts.down_proj.weight"),
}
GGUF_TENSORS = llama.GGUF_TENSORS | {
    "attention.q": HalfSplit(Tensor("blk.{i}.attn_q.weight"), heads="h", turned="a"),
    "attention.q_a": Tensor("blk.{i}.attn_q_a.weight"),
    "attention.q_a_norm": Tensor("blk.{i}.attn_q_a_norm.weight"),
    "attention.q_b": HalfSplit(Tensor("blk.{i}.attn_q_b.weight"), heads="h", turned="a"),
    "attention.kv_a": HalfSplit(Tensor("blk.{i}.attn_kv_a_mqa.weight"), heads="g", turned="a"),
    "attention.kv_a_norm": Tensor("blk.{i}.attn_kv_a_norm.weight"),
    "attention.kv_b": Stack(
        (
            Flat(Transposed(Tensor("blk.{i}.attn_k_b.weight")), heads="h"),
            Flat(Tensor("blk.{i}.attn_v_b.weight"), heads="h"),
        )
    ),
    "moe.choice_bias": Tensor("blk.{i}.exp_probs_b.bias"),
    "moe.shared_gate_up": Stack((Tensor("blk.{i}.ffn_gate_shexp.weight"), Tensor("blk.{i}.ffn_up_shexp.weight"))),
    "moe.shared_down": Tensor("blk.{i}.ffn_down_shexp.weight"),
}
HARMLESS_TENSORS = (*llama.HARMLESS_TENSORS, "model.layers.{n}.*")  # one layer more than num_hidden_layers

# Those of training; V2's files name groups even where experts are chosen among all.
HARMLESS_FIELDS = "aux_loss_alpha seq_aux ep_size num_nextn_predict_layers n_group topk_group".split()

SOFTMAX, SIGMOID = 1, 2  # `expert_gating_func` in llama.cpp


def config_from_hf(fields: Fields) -> Config:
    """Config from the fields of config.json."""
    for key, value in (("attention_bias", False), ("mlp_bias", False), ("moe_layer_freq", 1)):
        fields.only(key, value)
    dense = fields.integer("first_k_dense_replace", least=0)
    attention, mlp, moe = latent_attention_from_hf(fields), mlp_from_hf(fields), experts_from_hf(fields)
    return decoder_from_hf(fields, lambda i: (attention, mlp if i < dense else moe), harmless=HARMLESS_FIELDS)


def latent_attention_from_hf(fields: Fields) -> LatentAttentionSpec:
    """Sizes and rotary positions. YaRN's factor for all channels, plain ones as well, goes into the softmax."""
    h, k, a = (fields.integer(name) for name in ("num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim"))
    same = {"num_key_value_heads": h, "head_dim": a, "qk_head_dim": k + a, "rope_interleave": True}
    for key, value in same.items():
        fields.only(key, value)
    scaling, sharper = rope_fields(fields), 1.0
    if scaling.has("mscale_all_dim"):
        sharper = rope.yarn_scale(scaling.number("factor"), scaling.number("mscale_all_dim"))
    return LatentAttentionSpec(
        h,
        k,
        a,
        j=fields.integer("v_head_dim"),
        l=fields.integer("kv_lora_rank"),
        rope=rope_from_hf(fields, a, size="qk_rope_head_dim"),
        scale=sharper**2 * (k + a) ** -0.5,
        q_rank=fields.integer("q_lora_rank", 0, least=0) or None,
    )


def experts_from_hf(fields: Fields) -> MoESpec:
    """V2: the best by a softmax, of all or of a few groups. V3: by sigmoids and a bias that balances load."""
    v3 = fields.text("model_type") == "deepseek_v3"
    methods = ("noaux_tc",) if v3 else ("greedy", "group_limited_greedy")
    fields.only("topk_method", *methods)
    fields.only("scoring_func", "sigmoid" if v3 else "softmax")
    if not v3:
        fields.only("norm_topk_prob", False)
    moe = moe_from_hf(
        fields,
        count="n_routed_experts",
        scoring="sigmoid" if v3 else "softmax",
        normalise=v3 and fields.flag("norm_topk_prob", True),
        scale=fields.number("routed_scaling_factor"),
        choice_bias=v3,
        f_shared=fields.integer("moe_intermediate_size") * fields.integer("n_shared_experts"),
    )
    in_groups = v3 or fields.values.get("topk_method") == "group_limited_greedy"
    return grouped(fields, moe, "n_group", "topk_group") if in_groups else moe


def grouped(fields: Fields, moe: MoESpec, groups: str, top_groups: str) -> MoESpec:
    """The same experts in groups, of which only a token's best may serve it; both are counted by these fields."""
    n, best = fields.integer(groups), fields.integer(top_groups)
    fields.require(moe.e % n == 0, groups, f"a divisor of the number of experts, {moe.e}")
    needed = -(-moe.top_k * n // moe.e)  # so many groups hold the experts of a token
    fields.require(needed <= best <= n, top_groups, f"a whole number from {needed} to {groups} = {n}")
    return replace(moe, groups=n, top_groups=best)


def config_from_gguf(fields: Fields, source: Source) -> Config:
    """Config from the `deepseek2.*` metadata; files from before llama.cpp split `attn_kv_b` are refused."""
    dense = fields.integer("leading_dense_block_count", least=0)
    attention, mlp = latent_attention_from_gguf(fields, source), mlp_from_gguf(fields)
    moe = experts_from_gguf(fields)
    return decoder_from_gguf(fields, source, lambda i: (attention, mlp if i < dense else moe), arch="deepseek2")


def latent_attention_from_gguf(fields: Fields, source: Source) -> LatentAttentionSpec:
    """Sizes and rotary positions; `yarn_log_multiplier` is a tenth of `mscale_all_dim`, and `mscale` its equal."""
    width, a = fields.integer("attention.key_length_mla"), fields.integer("rope.dimension_count")
    l = fields.integer("attention.kv_lora_rank")
    fields.require(width > a, "attention.key_length_mla", f"more than rope.dimension_count = {a}")
    for key, value in (("head_count_kv", 1), ("key_length", l + a), ("value_length", l)):
        fields.only(f"attention.{key}", value)
    turns, sharper = rope_from_gguf(fields, source, a), 1.0
    fields.only("rope.scaling.attn_factor", 1.0)
    if turns.recipe.kind == "yarn":
        sharper = rope.yarn_scale(turns.recipe.factor, 10 * fields.number("rope.scaling.yarn_log_multiplier"))
    return LatentAttentionSpec(
        fields.integer("attention.head_count"),
        width - a,
        a,
        j=fields.integer("attention.value_length_mla"),
        l=l,
        rope=replace(turns, scale=1.0),  # mscale / mscale_all_dim, which are equal
        scale=sharper**2 * width**-0.5,
        q_rank=fields.integer("attention.q_lora_rank", 0, least=0) or None,
        eps=fields.number("attention.layer_norm_rms_epsilon"),
    )


def experts_from_gguf(fields: Fields) -> MoESpec:
    """Scores are a softmax in V2 and sigmoids in V3; groups are rated as in DeepSeek's code for each."""
    fields.only("expert_gating_func", SOFTMAX, SIGMOID)
    v3 = fields.values.get("expert_gating_func") == SIGMOID
    moe = moe_from_gguf(
        fields,
        scoring="sigmoid" if v3 else "softmax",
        normalise=fields.flag("expert_weights_norm", False),
        scale=fields.number("expert_weights_scale", 1.0),
        choice_bias=v3,
        f_shared=fields.integer("expert_feed_forward_length") * fields.integer("expert_shared_count"),
    )
    keys = "expert_group_count", "expert_group_used_count"
    counts = [fields.integer(key, 0, least=0) for key in keys]
    return grouped(fields, moe, *keys) if any(counts) else moe


def gguf_metadata(config: Config) -> Metadata:
    """The `deepseek2.*` metadata of a config."""
    dense = [spec for layer in config.layers for spec in layer if isinstance(spec, MLPSpec)]
    values = {"leading_dense_block_count": len(dense)}
    for moe in [spec for spec in config.layers[-1] if isinstance(spec, MoESpec)]:
        values |= {
            "feed_forward_length": dense[0].f if dense else moe.f,  # to be said even if no layer has it
            "expert_shared_count": moe.f_shared // moe.f,
            "expert_gating_func": SIGMOID if moe.scoring == "sigmoid" else SOFTMAX,
            "expert_weights_norm": moe.normalise,
            "expert_weights_scale": moe.scale,
        }
        if moe.groups is not None:
            values |= {"expert_group_count": moe.groups, "expert_group_used_count": moe.top_groups}
    return decoder_to_gguf(config, "deepseek2", values)
