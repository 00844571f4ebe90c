"""Llama (Touvron et al. 2023, arXiv:2302.13971): RMSNorm, rotary attention, SwiGLU, nothing with a bias."""

from ..config import Config, Fields
from .from_gguf import FACTOR_TENSORS, attention_from_gguf, decoder_from_gguf, mlp_from_gguf, moe_from_gguf
from .from_hf import attention_from_hf, decoder_from_hf, mlp_from_hf
from .tensors import HalfSplit, Source, Stack, Tensor
from .to_gguf import Metadata, decoder_to_gguf

HF, GGUF = ("llama",), ("llama",)


def gate_up(ffn: str) -> Stack:
    """The rows of the gate, then those of the up projection; ffn is how the names of the layer's tensors begin."""
    return Stack((Tensor(ffn + "gate_proj.weight"), Tensor(ffn + "up_proj.weight")))


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
    "mlp.gate_up": gate_up("model.layers.{i}.mlp."),
    "mlp.down": Tensor("model.layers.{i}.mlp.down_proj.weight"),
}

# llama.cpp stores the query and key rows of this architecture for interleaved RoPE. It has Mixtral under this name.
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
    "moe.norm": Tensor("blk.{i}.ffn_norm.weight"),
    "moe.router": Tensor("blk.{i}.ffn_gate_inp.weight"),
    "moe.gate_up": Stack((Tensor("blk.{i}.ffn_gate_exps.weight"), Tensor("blk.{i}.ffn_up_exps.weight")), axis=1),
    "moe.down": Tensor("blk.{i}.ffn_down_exps.weight"),
}

# Rotary frequencies, which the config has read or says already; a head stored though it is tied.
FREQUENCIES = ("model.layers.{i}.self_attn.rotary_emb.inv_freq", *FACTOR_TENSORS)
HARMLESS_TENSORS = (*FREQUENCIES, "lm_head.weight")


def config_from_hf(fields: Fields) -> Config:
    """Config from the fields of config.json."""
    fields.only("attention_bias", False)
    fields.only("mlp_bias", False)
    fields.only("rope_interleaved", False)
    blocks = attention_from_hf(fields), mlp_from_hf(fields)
    return decoder_from_hf(fields, lambda i: blocks)


def config_from_gguf(fields: Fields, source: Source) -> Config:
    """Config from the `llama.*` metadata."""
    fields.only("tensor_data_layout", "Meta AI original pth")  # old files' name for interleaved query and key rows
    experts = fields.integer("expert_count", 0, least=0) > 0
    ffn = moe_from_gguf(fields, "feed_forward_length") if experts else mlp_from_gguf(fields)
    blocks = attention_from_gguf(fields, source), ffn
    return decoder_from_gguf(fields, source, lambda i: blocks, arch="llama")


def gguf_metadata(config: Config) -> Metadata:
    """The `llama.*` metadata of a config."""
    return decoder_to_gguf(config, "llama", expert_size="feed_forward_length")
