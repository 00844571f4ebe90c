"""What config.json files say in the same words: sizes, rotary positions, attention and feed-forward layers.

Each function reads its fields and gives the description of a block; `decoder_from_hf` puts them together, and
refuses the file for any field that nobody has read. `from_gguf` is the same for the metadata of GGUF files.
"""

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from .. import rope
from ..blocks import AttentionSpec, MLPSpec, MoESpec
from ..config import Config, Fields
from ..rope import Rope

# Fields of config.json that do not change what is computed, whatever they say: where a file comes from and what it
# is called, tokens and tasks, training and its noise, kernels, and how others generate, which old files say too.
HARMLESS_HF_FIELDS = """
    _name_or_path architectures auto_map dtype torch_dtype transformers_version transformers.js_config
    unsloth_version unsloth_fixed is_llama_config tokenizer_class max_sequence_length is_decoder use_bfloat16
    bos_token_id pad_token_id pad_token sep_token_id decoder_start_token_id prefix
    id2label label2id _num_labels problem_type finetuning_task task_specific_params
    initializer_range attention_dropout resid_pdrop embd_pdrop attn_pdrop hidden_dropout gradient_checkpointing
    output_router_logits router_aux_loss_coef router_jitter_noise rescale_prenorm_residual tf_legacy_loss
    use_cache use_mambapy residual_in_fp32 pretraining_tp chunk_size_feed_forward torchscript attn_implementation
    _attn_implementation _attn_implementation_autoset _flash_attn_2_enabled
    output_attentions output_hidden_states output_scores return_dict return_dict_in_generate
    max_length min_length do_sample early_stopping num_beams num_beam_groups num_return_sequences temperature top_k
    top_p typical_p repetition_penalty length_penalty diversity_penalty exponential_decay_length_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids suppress_tokens begin_suppress_tokens
    forced_bos_token_id forced_eos_token_id remove_invalid_values
""".split()

LAYER_TYPES = ("full_attention", "sliding_attention")

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
    longest: int = 2048,
    eps: str = "rms_norm_eps",
    tied: bool = False,
    harmless: Collection[str] = (),
    **more: Any,
) -> Config:
    """Config of a decoder from config.json; layer(i) reads the blocks of layer i.

    `d`, `n_layers`, `trained` and `eps` are the fields of the width, the depth, the longest sequence and the norms'
    constant; `longest` (Llama's by default) and `tied` are what holds where the file does not say; `harmless`
    fields may be there unread; the rest goes into the config.
    """
    for key in ("is_encoder_decoder", "tie_encoder_decoder", "add_cross_attention", "use_bidirectional_attention"):
        fields.only(key, False)
    fields.only("use_mrope", False)
    fields.only("pruned_heads", {})
    config = Config(
        arch=fields.text("model_type"),
        d=fields.integer(d),
        v=fields.integer("vocab_size"),
        context=fields.opened_for(fields.integer(trained, longest)),
        limited=fields.is_limited(fields.integer(trained, longest)),
        layers=tuple(layer(i) for i in range(fields.layer_count(n_layers))),
        tied=fields.flag("tie_word_embeddings", tied),
        eos=fields.ids("eos_token_id"),
        eps=fields.number(eps),
        **more,
    )
    fields.finish([*HARMLESS_HF_FIELDS, *harmless])
    return config


def attention_from_hf(
    fields: Fields, *, theta: float = 10000.0, part: float = 1.0, **choices: Any
) -> AttentionSpec:
    """Heads and rotary positions from config.json; theta and part as in `rope_from_hf`, choices AttentionSpec's."""
    d, h = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    g, k = fields.integer("num_key_value_heads", h), fields.integer("head_dim", max(d // h, 1))
    fields.require(h % g == 0, "num_key_value_heads", f"a divisor of num_attention_heads = {h}")
    if "rope" not in choices:
        choices["rope"] = rope_from_hf(fields, k, theta=theta, part=part)
    return AttentionSpec(h, g, k, **choices)


def mlp_from_hf(fields: Fields, size: str = "intermediate_size", **choices: Any) -> MLPSpec:
    """The feed-forward layer from config.json; choices are MLPSpec's."""
    return MLPSpec(fields.integer(size), activation_from_hf(fields), **choices)


def moe_from_hf(
    fields: Fields, size: str = "moe_intermediate_size", count: str | None = None, **choices: Any
) -> MoESpec:
    """The experts from config.json; choices are MoESpec's.

    `size` is the field of an expert's channels, `count` that of their number, by default either of two.
    """
    e = fields.integer(count or ("num_experts" if fields.has("num_experts") else "num_local_experts"))
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
    return fields.choices("layer_types", fields.layer_count("num_hidden_layers"), *allowed)


def windows_from_hf(fields: Fields, window: int | None, sliding: Callable[[int], bool]) -> tuple[int | None, ...]:
    """The window of each layer by `layer_types`; where they are not listed, in the layers that are `sliding`."""
    n_layers = fields.layer_count("num_hidden_layers")
    types = layer_types(fields, *LAYER_TYPES) or [LAYER_TYPES[sliding(i)] for i in range(n_layers)]
    expected = "a sliding_window in use, for there are layers of type sliding_attention"
    fields.require(window is not None or "sliding_attention" not in types, "layer_types", expected)
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def rope_from_hf(
    fields: Fields,
    k: int,
    group: str | None = None,
    theta: float = 10000.0,
    part: float = 1.0,
    size: str = "head_dim",
) -> Rope:
    """Rotary positions for heads of k channels, as transformers 5 writes them or as older versions did.

    `group` is the entry of `rope_parameters` where types of layers differ; theta is the base and
    `part` the share of a head's channels that turn where none is given; `size` is the field that gave k.
    """
    fields.require(k % 2 == 0, size, "an even number, for RoPE turns pairs of channels")
    fields.require(k <= rope.MOST_CHANNELS, size, f"at most {rope.MOST_CHANNELS}")
    scaling = rope_fields(fields)
    if group is None:
        theta = scaling.number("rope_theta", fields.number("rope_theta", theta))
    else:
        scaling.finish(LAYER_TYPES)
        scaling = scaling.group(group)
        theta = scaling.number("rope_theta", theta)
    (scaling if scaling.has("rope_theta") else fields).require(theta > 1, "rope_theta", "a number above 1")
    turned = k * scaling.number("partial_rotary_factor", fields.number("partial_rotary_factor", part))
    scaling.require(turned % 2 == 0 and turned <= k, "partial_rotary_factor", f"an even part of {size} = {k}")
    for key in ("rope_type", "type"):
        scaling.only(key, *SCALINGS)
    kind = scaling.values.get("rope_type") or scaling.values.get("type") or "default"
    made = SCALINGS[kind](scaling, fields, int(turned), theta)
    scaling.finish(())
    return made


def rope_fields(fields: Fields) -> Fields:
    """What a file says of rotary positions, under its new name or its old; two that differ are refused."""
    if not fields.has("rope_parameters"):
        fields.read.add("rope_parameters")
        return fields.group("rope_scaling")
    fields.only("rope_scaling", fields.values["rope_parameters"])
    return fields.group("rope_parameters")


def scaled_linear(scaling: Fields, fields: Fields, k: int, theta: float) -> Rope:
    """`rope.linear` from its fields."""
    return rope.linear(k, theta, scaling.number("factor"))


def scaled_llama3(scaling: Fields, fields: Fields, k: int, theta: float) -> Rope:
    """`rope.llama3` from its fields."""
    names = ("factor", "low_freq_factor", "high_freq_factor")
    factor, low, high = (scaling.number(name) for name in names)
    scaling.require(high > low, "high_freq_factor", f"more than low_freq_factor = {low}")
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
    made = rope.longrope(k, theta, short, long, stretch, original, fields.opened_for(trained))
    return replace(made, scale=scaling.number("attention_factor", made.scale))


def original_context(scaling: Fields, fields: Fields) -> int:
    """The context a model had before it was stretched; what stands beside the other sizes goes first."""
    key = "original_max_position_embeddings"
    trained = fields.integer("max_position_embeddings")
    return fields.integer(key, scaling.integer(key, trained, least=2), least=2)


SCALINGS: dict[str, Callable[[Fields, Fields, int, float], Rope]] = {
    "default": lambda scaling, fields, k, theta: rope.default(k, theta),
    "linear": scaled_linear,
    "llama3": scaled_llama3,
    "yarn": scaled_yarn,
    "longrope": scaled_longrope,
    "su": scaled_longrope,  # its first name
}
