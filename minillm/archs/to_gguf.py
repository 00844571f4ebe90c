"""A config in the words of a GGUF file's metadata: the other direction of `from_gguf`.

An architecture's `gguf_metadata` is made of these. Whether its words say everything that is in the config need not
be asked here: whoever writes a file reads it back before it counts.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from .. import rope
from ..blocks import AttentionSpec, GatedDeltaSpec, LatentAttentionSpec, Mamba2Spec, MambaSpec, MLPSpec, MoESpec
from ..config import Config
from ..rope import Rope
from .from_gguf import ROPE_FACTORS, ROPE_LONG, ROPE_SHORT

Metadata = dict[str, Any]


def decoder_to_gguf(
    config: Config,
    name: str,
    more: Metadata | None = None,
    *,
    eps: str = "attention.layer_norm_rms_epsilon",
    expert_size: str = "expert_feed_forward_length",
) -> Metadata:
    """The metadata of llama.cpp's architecture `name`.

    Of each kind of block the first in the model speaks; `more` is what must be said otherwise, or besides. eps and
    expert_size are what the constant of norms and the channels of an expert are called.
    """
    values = {
        "block_count": len(config.layers),
        "context_length": config.context,
        "embedding_length": config.d,
        "vocab_size": config.v,
        eps: config.eps,
    }
    for layer in reversed(config.layers):
        for spec in layer:
            values |= WORDS[type(spec)](spec)
            if isinstance(spec, MoESpec):
                values[expert_size] = spec.f
    values |= more or {}
    return {"general.architecture": name} | {f"{name}.{key}": value for key, value in values.items()}


def attention_to_gguf(spec: AttentionSpec) -> Metadata:
    """Heads, rotary positions and the window."""
    values: Metadata = {
        "attention.head_count": spec.h,
        "attention.head_count_kv": spec.g,
        "attention.key_length": spec.k,
        "attention.value_length": spec.k,
    }
    if spec.window is not None:
        values["attention.sliding_window"] = spec.window
    return values | (rope_to_gguf(spec.rope) if spec.rope else {})


def rope_to_gguf(turned: Rope) -> Metadata:
    """Rotary positions, but for what `rope_tensors` says."""
    recipe = turned.recipe
    values: Metadata = {"rope.dimension_count": 2 * len(turned.freqs), "rope.freq_base": recipe.theta}
    if recipe.kind in ("linear", "yarn", "longrope"):
        values["rope.scaling.type"] = recipe.kind
    if recipe.kind in ("linear", "yarn"):
        values["rope.scaling.factor"] = recipe.factor
    if recipe.kind in ("yarn", "longrope"):
        usual = rope.yarn_scale(recipe.factor) if recipe.kind == "yarn" else 1.0
        values["rope.scaling.original_context_length"] = recipe.original
        values["rope.scaling.attn_factor"] = turned.scale / usual
    if recipe.kind == "yarn" and (recipe.fast, recipe.slow) != (32.0, 1.0):
        values |= {"rope.scaling.yarn_beta_fast": recipe.fast, "rope.scaling.yarn_beta_slow": recipe.slow}
    return values


def latent_attention_to_gguf(spec: LatentAttentionSpec) -> Metadata:
    """Heads as they are, and as one head over the latent; YaRN's factor is in the scale of scores."""
    width, recipe = spec.k + spec.a, spec.rope.recipe
    values: Metadata = {
        "attention.head_count": spec.h,
        "attention.head_count_kv": spec.g,
        "attention.key_length": spec.l + spec.a,
        "attention.value_length": spec.l,
        "attention.key_length_mla": width,
        "attention.value_length_mla": spec.j,
        "attention.kv_lora_rank": spec.l,
    }
    if spec.q_rank:
        values["attention.q_lora_rank"] = spec.q_rank
    values |= rope_to_gguf(spec.rope)
    if recipe.kind == "yarn":
        values["rope.scaling.attn_factor"] = spec.rope.scale
        sharper = math.sqrt(spec.scale * math.sqrt(width))
        values["rope.scaling.yarn_log_multiplier"] = (sharper - 1) / math.log(recipe.factor)
    return values


def mamba_to_gguf(spec: MambaSpec) -> Metadata:
    """Sizes of the state; the zeros are said to llama.cpp."""
    values: Metadata = {
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "ssm.inner_size": spec.i,
        "ssm.state_size": spec.n,
        "ssm.time_step_rank": spec.rank,
        "ssm.conv_kernel": spec.w,
    }
    return values | ({"ssm.dt_b_c_rms": True} if spec.norms == "plain" else {})


def mamba2_to_gguf(spec: Mamba2Spec) -> Metadata:
    """Sizes of the state, in which the number of heads is called time_step_rank."""
    return {
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "ssm.inner_size": spec.i,
        "ssm.state_size": spec.n,
        "ssm.time_step_rank": spec.h,
        "ssm.group_count": spec.g,
        "ssm.conv_kernel": spec.w,
    }


def delta_to_gguf(spec: GatedDeltaSpec) -> Metadata:
    """Sizes of the state, in which the number of value heads is called time_step_rank."""
    return {
        "ssm.inner_size": spec.h * spec.j,
        "ssm.state_size": spec.k,
        "ssm.time_step_rank": spec.h,
        "ssm.group_count": spec.g,
        "ssm.conv_kernel": spec.w,
    }


def moe_to_gguf(spec: MoESpec) -> Metadata:
    """How many experts there are, and serve a token; architectures differ in what else they say."""
    return {"expert_count": spec.e, "expert_used_count": spec.top_k}


WORDS: dict[type, Callable[[Any], Metadata]] = {
    AttentionSpec: attention_to_gguf,
    GatedDeltaSpec: delta_to_gguf,
    LatentAttentionSpec: latent_attention_to_gguf,
    MLPSpec: lambda spec: {"feed_forward_length": spec.f},
    MoESpec: moe_to_gguf,
    MambaSpec: mamba_to_gguf,
    Mamba2Spec: mamba2_to_gguf,
}


def rope_tensors(config: Config) -> dict[str, np.ndarray]:
    """The tensors that say how many times more slowly each pair of channels turns, where no method explains it."""
    tensors = {}
    for turned in {spec.rope: None for layer in config.layers for spec in layer if getattr(spec, "rope", None)}:
        recipe = turned.recipe
        if recipe.kind == "factors":
            usual = rope.default(2 * len(turned.freqs), recipe.theta)
            tensors[ROPE_FACTORS] = np.float32(np.asarray(usual.freqs) / np.asarray(turned.freqs))
        elif recipe.kind == "longrope":
            tensors |= {ROPE_SHORT: np.float32(recipe.short), ROPE_LONG: np.float32(recipe.long)}
    return tensors


def plain(config: Config) -> Config:
    """The same model with what can be said in two ways said in one: scales of scores, windows that hide nothing."""

    def said(spec: Any) -> Any:
        if not isinstance(spec, AttentionSpec):
            return spec
        window = spec.window if spec.window is not None and spec.window < config.context else None
        return replace(spec, window=window, scale=spec.scale or spec.k**-0.5)

    return replace(config, layers=tuple(tuple(said(spec) for spec in layer) for layer in config.layers))
