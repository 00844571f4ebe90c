"""Llama (Touvron et al. 2023, arXiv:2302.13971): RMSNorm, rotary attention, SwiGLU, nothing with a bias."""

from collections.abc import Collection

from ..blocks import MLP, Attention
from ..config import Config, Fields
from ..model import Model
from ..quant import Dense
from . import Get
from .tensors import HalfSplit, Stack, Tensor

HF_TENSORS = {
    "embed": Tensor("model.embed_tokens.weight"),
    "norm": Tensor("model.norm.weight"),
    "head": Tensor("lm_head.weight"),
    "attention.norm": Tensor("model.layers.{i}.input_layernorm.weight"),
    "attention.qkv": Stack(
        (
            Tensor("model.layers.{i}.self_attn.q_proj.weight"),
            Tensor("model.layers.{i}.self_attn.k_proj.weight"),
            Tensor("model.layers.{i}.self_attn.v_proj.weight"),
        )
    ),
    "attention.out": Tensor("model.layers.{i}.self_attn.o_proj.weight"),
    "mlp.norm": Tensor("model.layers.{i}.post_attention_layernorm.weight"),
    "mlp.gate_up": Stack(
        (Tensor("model.layers.{i}.mlp.gate_proj.weight"), Tensor("model.layers.{i}.mlp.up_proj.weight"))
    ),
    "mlp.down": Tensor("model.layers.{i}.mlp.down_proj.weight"),
}

# llama.cpp stores the query and key rows of this architecture for interleaved RoPE.
GGUF_TENSORS = {
    "embed": Tensor("token_embd.weight"),
    "norm": Tensor("output_norm.weight"),
    "head": Tensor("output.weight"),
    "attention.norm": Tensor("blk.{i}.attn_norm.weight"),
    "attention.qkv": Stack(
        (
            HalfSplit(Tensor("blk.{i}.attn_q.weight"), heads="h"),
            HalfSplit(Tensor("blk.{i}.attn_k.weight"), heads="g"),
            Tensor("blk.{i}.attn_v.weight"),
        )
    ),
    "attention.out": Tensor("blk.{i}.attn_output.weight"),
    "mlp.norm": Tensor("blk.{i}.ffn_norm.weight"),
    "mlp.gate_up": Stack((Tensor("blk.{i}.ffn_gate.weight"), Tensor("blk.{i}.ffn_up.weight"))),
    "mlp.down": Tensor("blk.{i}.ffn_down.weight"),
}

# Frequencies that older files carry along and rope_theta says already; a head stored though it is tied.
HARMLESS_TENSORS = ("model.layers.{i}.self_attn.rotary_emb.inv_freq", "lm_head.weight")

HARMLESS_HF_FIELDS = """
    _name_or_path architectures bos_token_id pad_token_id dtype torch_dtype initializer_range pretraining_tp
    transformers_version use_cache attention_dropout is_llama_config transformers.js_config output_attentions
    output_hidden_states return_dict chunk_size_feed_forward id2label label2id problem_type
""".split()


def config_from_hf(fields: Fields) -> Config:
    """Config from the fields of config.json."""
    fields.only("model_type", "llama")
    fields.only("hidden_act", "silu")
    fields.only("attention_bias", False)
    fields.only("mlp_bias", False)
    fields.only("rope_scaling", None)
    fields.only("rope_interleaved", False)
    fields.only("is_encoder_decoder", False)
    rope = fields.group("rope_parameters")  # transformers 5; older files have rope_theta at the top
    rope.only("rope_type", "default")
    theta = rope.number("rope_theta", fields.number("rope_theta", 10000.0))
    rope.finish(())
    d, h = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    g, k = fields.integer("num_key_value_heads", h), fields.integer("head_dim", max(d // h, 1))
    fields.require(h % g == 0, "num_key_value_heads", f"a divisor of num_attention_heads = {h}")
    fields.require(k % 2 == 0, "head_dim", "an even number, for RoPE turns pairs of channels")
    config = Config(
        arch="llama",
        n_layers=fields.integer("num_hidden_layers"),
        d=d,
        h=h,
        g=g,
        k=k,
        f=fields.integer("intermediate_size"),
        v=fields.integer("vocab_size"),
        context=fields.integer("max_position_embeddings", 2048),
        eps=fields.number("rms_norm_eps", 1e-6),
        rope_theta=theta,
        tied=fields.flag("tie_word_embeddings", False),
        eos=fields.ids("eos_token_id"),
    )
    fields.finish(HARMLESS_HF_FIELDS)
    return config


def config_from_gguf(fields: Fields, tensors: Collection[str]) -> Config:
    """Config from the `llama.*` metadata; a file without an output matrix ties it to the embedding."""
    d, h = fields.integer("embedding_length"), fields.integer("attention.head_count")
    g, k = fields.integer("attention.head_count_kv", h), fields.integer("attention.key_length", max(d // h, 1))
    fields.require(h % g == 0, "attention.head_count_kv", f"a divisor of attention.head_count = {h}")
    fields.require(k % 2 == 0, "attention.key_length", "an even number, for RoPE turns pairs of channels")
    fields.only("attention.value_length", k)
    fields.only("rope.dimension_count", k)
    fields.only("rope.scaling.type", "none")
    config = Config(
        arch="llama",
        n_layers=fields.integer("block_count"),
        d=d,
        h=h,
        g=g,
        k=k,
        f=fields.integer("feed_forward_length"),
        v=fields.integer("vocab_size"),
        context=fields.integer("context_length"),
        eps=fields.number("attention.layer_norm_rms_epsilon"),
        rope_theta=fields.number("rope.freq_base", 10000.0),
        tied="output.weight" not in tensors,
        eos=(),
    )
    fields.finish(())
    return config


def build(config: Config, get: Get) -> Model:
    """The model, an Attention and an MLP a layer, from tensors that `get` checks and reads."""
    c = config

    def linear(name: str, layer: int, size_in: int, *sizes_out: int) -> Dense:
        return Dense(get(name, layer, *((size, size_in) for size in sizes_out))).T

    embed = Dense(get("embed", 0, (c.v, c.d)))
    blocks = []
    for i in range(c.n_layers):
        qkv = linear("attention.qkv", i, c.d, c.h * c.k, c.g * c.k, c.g * c.k)
        out = linear("attention.out", i, c.h * c.k, c.d)
        norm = get("attention.norm", i, (c.d,))
        blocks.append(Attention(norm, qkv, out, c.h, c.g, c.k, c.eps, c.rope_theta))
        gate_up, down = linear("mlp.gate_up", i, c.d, c.f, c.f), linear("mlp.down", i, c.f, c.d)
        blocks.append(MLP(get("mlp.norm", i, (c.d,)), gate_up, down, c.eps))
    head = None if c.tied else linear("head", 0, c.d, c.v)
    return Model(embed, tuple(blocks), get("norm", 0, (c.d,)), head, c.eps)
