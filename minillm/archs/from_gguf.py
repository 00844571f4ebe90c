"""What GGUF files' metadata says in the same words: sizes, rotary positions, attention and feed-forward layers.

The counterpart of `from_hf`, and `to_gguf` turned around.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from .. import rope
from ..blocks import AttentionSpec, MLPSpec, MoESpec
from ..config import Config, Fields
from ..errors import UserError
from ..rope import Recipe, Rope
from .tensors import Source

# Tensors of a GGUF file that say how many times more slowly each pair of channels turns.
ROPE_FACTORS, ROPE_SHORT, ROPE_LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
FACTOR_TENSORS = (ROPE_FACTORS, ROPE_SHORT, ROPE_LONG)


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
        context=fields.opened_for(fields.integer("context_length")),
        limited=fields.is_limited(fields.integer("context_length")),
        layers=tuple(layer(i) for i in range(fields.layer_count("block_count"))),
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
    fields.require(theta > 1, "rope.freq_base", "a number above 1")
    most = min(k, rope.MOST_CHANNELS)
    fields.require(turned % 2 == 0 and turned <= most, "rope.dimension_count", f"an even number up to {most}")
    fields.only("rope.scaling.type", "none", "linear", "yarn", "longrope")
    kind = fields.values.get("rope.scaling.type") or "none"
    trained = fields.integer("context_length")
    original = fields.integer("rope.scaling.original_context_length", trained, least=2)
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
        made = rope.longrope(turned, theta, short, long, trained / original, original, fields.opened_for(trained))
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
