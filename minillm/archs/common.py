"""What most checkpoints say in the same words: sizes, rotary positions, attention and feed-forward layers."""

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import numpy as np

from .. import rope
from ..blocks import AttentionSpec, MLPSpec, MoESpec
from ..config import Config, Fields
from ..errors import UserError
from ..rope import Recipe, Rope
from .tensors import Source

# Fields of config.json that do not change what is computed.
HARMLESS_HF_FIELDS = """
    _name_or_path architectures bos_token_id pad_token_id dtype torch_dtype initializer_range pretraining_tp
    transformers_version use_cache attention_dropout is_llama_config transformers.js_config output_attentions
    output_hidden_states return_dict chunk_size_feed_forward id2label label2id problem_type auto_map
    resid_pdrop embd_pdrop attn_pdrop hidden_dropout output_router_logits router_aux_loss_coef router_jitter_noise
    rescale_prenorm_residual residual_in_fp32 use_mambapy
""".split()

# Tensors of a GGUF file that say how many times more slowly each pair of channels turns.
ROPE_FACTORS, ROPE_SHORT, ROPE_LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
FACTOR_TENSORS = (ROPE_FACTORS, ROPE_SHORT, ROPE_LONG)

LAYER_TYPES = ("full_attention", "sliding_attention")

MOST_LAYERS = 1000  # more than any model has; the number comes from a file nobody vouches for

HF_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def decoder_from_hf(
    fields: Fields,
    layer: Callable[[int], tuple[Any, ...]],
    *,
    d: str = "hidden_size",
    n_layers: str = "num_hidden_layers",
    trained: str = "max_position_embeddings",
    eps: str = "rms_norm_eps",
    tied: bool = False,
    harmless: Collection[str] = (),
    **more: Any,
) -> Config:
    """Config of a decoder from config.json; layer(i) reads the blocks of layer i.

    `d`, `n_layers`, `trained` and `eps` are the fields of the width, the depth, the longest sequence and the norms'
    constant; `tied` is what holds where the file does not say; `harmless` fields may be there unread; the rest goes
    into the config.
    """
    fields.only("is_encoder_decoder", False)
    fields.only("use_bidirectional_attention", False)
    config = Config(
        arch=str(fields.values["model_type"]),
        d=fields.integer(d),
        v=fields.integer("vocab_size"),
        context=context(fields, fields.integer(trained, 2048)),
        layers=tuple(layer(i) for i in range(layer_count(fields, n_layers))),
        tied=fields.flag("tie_word_embeddings", tied),
        eos=fields.ids("eos_token_id"),
        eps=fields.number(eps),
        **more,
    )
    fields.read.add("model_type")
    fields.finish([*HARMLESS_HF_FIELDS, *harmless])
    return config


def layer_count(fields: Fields, key: str = "num_hidden_layers") -> int:
    """How many layers there are."""
    n_layers = fields.integer(key)
    fields.require(n_layers <= MOST_LAYERS, key, f"at most {MOST_LAYERS}")
    return n_layers


def context(fields: Fields, trained: int) -> int:
    """The context a model is opened with: what it was made for, or less where the user asks for less."""
    return trained if fields.context is None else min(trained, fields.context)


def attention_from_hf(
    fields: Fields, *, theta: float = 10000.0, part: float = 1.0, **choices: Any
) -> AttentionSpec:
    """Heads and rotary positions from config.json; theta and part as in `rope_from_hf`, choices AttentionSpec's."""
    d, h = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    g, k = fields.integer("num_key_value_heads", h), fields.integer("head_dim", max(d // h, 1))
    fields.require(h % g == 0, "num_key_value_heads", f"a divisor of num_attention_heads = {h}")
    if "rope" not in choices:
        fields.require(k % 2 == 0, "head_dim", "an even number, for RoPE turns pairs of channels")
        choices["rope"] = rope_from_hf(fields, k, theta=theta, part=part)
    return AttentionSpec(h, g, k, **choices)


def mlp_from_hf(fields: Fields, size: str = "intermediate_size", **choices: Any) -> MLPSpec:
    """The feed-forward layer from config.json; choices are MLPSpec's."""
    return MLPSpec(fields.integer(size), activation_from_hf(fields), **choices)


def moe_from_hf(fields: Fields, size: str = "moe_intermediate_size", **choices: Any) -> MoESpec:
    """The experts from config.json, which counts them by either of two names; choices are MoESpec's."""
    e = fields.integer("num_experts" if fields.has("num_experts") else "num_local_experts")
    fields.only("num_local_experts", e)
    top_k = fields.integer("num_experts_per_tok")
    fields.require(top_k <= e, "num_experts_per_tok", f"at most the number of experts, {e}")
    return MoESpec(e, fields.integer(size), top_k, activation=activation_from_hf(fields), **choices)


def activation_from_hf(fields: Fields, key: str = "hidden_act", absent: str = "silu") -> Any:
    """The activation function by its name here; `absent` where none is named."""
    fields.only(key, *HF_ACTIVATIONS)
    return HF_ACTIVATIONS[fields.values.get(key) or absent]


def window_from_hf(fields: Fields, absent: int | None = None) -> int | None:
    """How many tokens a query sees, itself included; None if the file says null, `absent` if it says nothing."""
    fields.read.add("sliding_window")
    if "sliding_window" not in fields.values:
        return absent
    return fields.integer("sliding_window") if fields.has("sliding_window") else None


def layer_types(fields: Fields, *allowed: str) -> tuple[str, ...] | None:
    """One of the allowed words a layer, None if the file does not list them."""
    if not fields.has("layer_types"):
        return None
    return fields.choices("layer_types", fields.integer("num_hidden_layers"), *allowed)


def windows_from_hf(fields: Fields, window: int | None, sliding: Callable[[int], bool]) -> tuple[int | None, ...]:
    """The window of each layer by `layer_types`; where they are not listed, in the layers that are `sliding`."""
    types = layer_types(fields, *LAYER_TYPES) or [LAYER_TYPES[sliding(i)] for i in range(layer_count(fields))]
    expected = "a sliding_window in use, for there are layers of type sliding_attention"
    fields.require(window is not None or "sliding_attention" not in types, "layer_types", expected)
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def rope_from_hf(
    fields: Fields, k: int, group: str | None = None, theta: float = 10000.0, part: float = 1.0
) -> Rope:
    """Rotary positions for heads of k channels, as transformers 5 writes them or as older versions did.

    `group` is the entry of `rope_parameters` where types of layers differ; theta is the base and
    `part` the share of a head's channels that turn where none is given.
    """
    scaling = fields.group("rope_parameters") if fields.has("rope_parameters") else fields.group("rope_scaling")
    fields.read |= {"rope_parameters", "rope_scaling"}
    if group is None:
        theta = scaling.number("rope_theta", fields.number("rope_theta", theta))
    else:
        scaling.finish(LAYER_TYPES)
        scaling = scaling.group(group)
        theta = scaling.number("rope_theta", theta)
    turned = k * scaling.number("partial_rotary_factor", fields.number("partial_rotary_factor", part))
    scaling.require(turned % 2 == 0 and turned <= k, "partial_rotary_factor", f"an even part of head_dim = {k}")
    kind = scaling.values.get("rope_type", scaling.values.get("type")) or "default"
    scaling.read |= {"rope_type", "type"}
    if kind not in SCALINGS:
        scaling.only("rope_type", *SCALINGS)
        scaling.only("type", *SCALINGS)
    made = SCALINGS[kind](scaling, fields, int(turned), theta)
    scaling.finish(())
    return made


def scaled_linear(scaling: Fields, fields: Fields, k: int, theta: float) -> Rope:
    """`rope.linear` from its fields."""
    return rope.linear(k, theta, scaling.number("factor"))


def scaled_llama3(scaling: Fields, fields: Fields, k: int, theta: float) -> Rope:
    """`rope.llama3` from its fields."""
    names = ("factor", "low_freq_factor", "high_freq_factor")
    factor, low, high = (scaling.number(name) for name in names)
    return rope.llama3(k, theta, factor, low, high, original_context(scaling, fields))


def scaled_yarn(scaling: Fields, fields: Fields, k: int, theta: float) -> Rope:
    """`rope.yarn` from its fields."""
    factor, scale = scaling.number("factor"), None
    if scaling.has("attention_factor"):
        scale = scaling.number("attention_factor")
    elif scaling.has("mscale") and scaling.has("mscale_all_dim"):
        weights = (scaling.number("mscale"), scaling.number("mscale_all_dim"))
        scale = rope.yarn_scale(factor, weights[0]) / rope.yarn_scale(factor, weights[1])
    return rope.yarn(
        k,
        theta,
        factor,
        original_context(scaling, fields),
        scaling.number("beta_fast", 32.0),
        scaling.number("beta_slow", 1.0),
        scaling.flag("truncate", True),
        scale,
    )


def scaled_longrope(scaling: Fields, fields: Fields, k: int, theta: float) -> Rope:
    """`rope.longrope` from its fields."""
    original, trained = original_context(scaling, fields), fields.integer("max_position_embeddings")
    long, short = (scaling.numbers(name, k // 2) for name in ("long_factor", "short_factor"))
    stretch = scaling.number("factor", trained / original)
    made = rope.longrope(k, theta, short, long, stretch, original, context(fields, trained))
    return replace(made, scale=scaling.number("attention_factor", made.scale))


def original_context(scaling: Fields, fields: Fields) -> int:
    """The context a model had before it was stretched; what stands beside the other sizes goes first."""
    key = "original_max_position_embeddings"
    return fields.integer(key, scaling.integer(key, fields.integer("max_position_embeddings")))


SCALINGS: dict[str, Callable[[Fields, Fields, int, float], Rope]] = {
    "default": lambda scaling, fields, k, theta: rope.default(k, theta),
    "linear": scaled_linear,
    "llama3": scaled_llama3,
    "yarn": scaled_yarn,
    "longrope": scaled_longrope,
    "su": scaled_longrope,  # its first name
}


def decoder_from_gguf(
    fields: Fields,
    source: Source,
    layer: Callable[[int], tuple[Any, ...]],
    *,
    arch: str,
    eps: str = "attention.layer_norm_rms_epsilon",
    **more: Any,
) -> Config:
    """Config of a decoder from a GGUF file's metadata; a file without an output matrix ties it to the embedding."""
    config = Config(
        arch=arch,
        d=fields.integer("embedding_length"),
        v=fields.integer("vocab_size"),
        context=context(fields, fields.integer("context_length")),
        layers=tuple(layer(i) for i in range(layer_count(fields, "block_count"))),
        tied="output.weight" not in source.names(),
        eps=fields.number(eps),
        **more,
    )
    fields.finish(())
    return config


def attention_from_gguf(fields: Fields, source: Source, **choices: Any) -> AttentionSpec:
    """Heads and rotary positions from a GGUF file's metadata; choices are AttentionSpec's."""
    d, h = fields.integer("embedding_length"), fields.integer("attention.head_count")
    g, k = fields.integer("attention.head_count_kv", h), fields.integer("attention.key_length", max(d // h, 1))
    fields.require(h % g == 0, "attention.head_count_kv", f"a divisor of attention.head_count = {h}")
    fields.only("attention.value_length", k)
    if "rope" not in choices:
        choices["rope"] = rope_from_gguf(fields, source, k)
    return AttentionSpec(h, g, k, **choices)


def mlp_from_gguf(fields: Fields, **choices: Any) -> MLPSpec:
    """The feed-forward layer from a GGUF file's metadata; choices are MLPSpec's."""
    return MLPSpec(fields.integer("feed_forward_length"), **choices)


def moe_from_gguf(fields: Fields, size: str = "expert_feed_forward_length", **choices: Any) -> MoESpec:
    """The experts from a GGUF file's metadata; choices are MoESpec's."""
    e, top_k = fields.integer("expert_count"), fields.integer("expert_used_count")
    fields.require(top_k <= e, "expert_used_count", f"at most expert_count = {e}")
    return MoESpec(e, fields.integer(size), top_k, **choices)


def window_from_gguf(fields: Fields) -> int | None:
    """How many tokens a query sees, itself included; None if the file says 0 or nothing."""
    fields.read.add("attention.sliding_window")
    return fields.integer("attention.sliding_window") if fields.values.get("attention.sliding_window") else None


def rope_from_gguf(fields: Fields, source: Source, k: int, truncate: bool = True) -> Rope:
    """Rotary positions for heads of k channels; llama3 and longrope come as tensors of factors.

    truncate is `rope.yarn`'s, for which a file has no word.
    """
    theta, turned = fields.number("rope.freq_base", 10000.0), fields.integer("rope.dimension_count", k)
    fields.require(turned % 2 == 0 and turned <= k, "rope.dimension_count", f"an even number up to {k}")
    fields.only("rope.scaling.type", "none", "linear", "yarn", "longrope")
    kind = fields.values.get("rope.scaling.type") or "none"
    trained = fields.integer("context_length")
    original = fields.integer("rope.scaling.original_context_length", trained)
    fields.only("rope.scaling.finetuned", True, False)
    given = [name for name in FACTOR_TENSORS if name in source.names()]
    alone = not given or kind not in ("linear", "yarn")
    fields.require(alone, "rope.scaling.type", f"none or longrope, for there is {' and '.join(given)}")
    if kind == "linear":
        return rope.linear(turned, theta, fields.number("rope.scaling.factor"))
    if kind == "yarn":
        factor, ends = fields.number("rope.scaling.factor"), (("fast", 32.0), ("slow", 1.0))
        fast, slow = (fields.number(f"rope.scaling.yarn_beta_{end}", turns) for end, turns in ends)
        scale = yarn_scale_from_gguf(fields, factor)
        return rope.yarn(turned, theta, factor, original, fast, slow, truncate, scale)
    if kind == "longrope" or ROPE_SHORT in given or ROPE_LONG in given:
        short, long = (factors_from_gguf(fields, source, name, turned) for name in (ROPE_SHORT, ROPE_LONG))
        made = rope.longrope(turned, theta, short, long, trained / original, original, context(fields, trained))
        return replace(made, scale=fields.number("rope.scaling.attn_factor", made.scale))
    if ROPE_FACTORS in given:
        factors = factors_from_gguf(fields, source, ROPE_FACTORS, turned)
        return Rope.of(np.asarray(rope.default(turned, theta).freqs) / factors, Recipe("factors", theta))
    return rope.default(turned, theta)


def factors_from_gguf(fields: Fields, source: Source, name: str, turned: int) -> tuple[float, ...]:
    """How many times more slowly each pair of channels turns."""
    where, expected = f"{fields.where}: tensor {name}", f"{turned // 2} numbers above 0"
    if source.shape(name) != (turned // 2,):
        raise UserError(f"{where} has shape {list(source.shape(name))}, expected {expected}")
    factors = source.read(name)
    if not (np.isfinite(factors) & (factors > 0)).all():
        raise UserError(f"{where} holds {factors.min()} to {factors.max()}, expected {expected}")
    return tuple(factors.tolist())


def yarn_scale_from_gguf(fields: Fields, factor: float) -> float:
    """YaRN's factor on queries and keys; `attn_factor` multiplies it."""
    return rope.yarn_scale(factor) * fields.number("rope.scaling.attn_factor", 1.0)
