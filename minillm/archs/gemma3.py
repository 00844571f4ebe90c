"""Gemma 3 (Kamath et al. 2025, arXiv:2503.19786): five layers with a short window for one that sees all.

Local and global layers turn their queries and keys by different frequencies, and norms of queries and keys take
the place of Gemma 2's bound on scores. This is the text model; checkpoints that also see are not supported.
"""

from .. import rope
from ..config import Config, Fields
from ..rope import Rope
from . import gemma2
from .from_gguf import attention_from_gguf, decoder_from_gguf, mlp_from_gguf, rope_from_gguf, window_from_gguf
from .from_hf import attention_from_hf, decoder_from_hf, rope_from_hf, window_from_hf, windows_from_hf
from .gemma import embed_scale_from_hf, geglu_from_hf
from .gemma2 import scale_from_gguf, scale_from_hf, softcap_from_hf
from .llama import HARMLESS_TENSORS  # noqa: F401
from .tensors import Plus, Source, Tensor
from .to_gguf import Metadata, decoder_to_gguf, rope_to_gguf

HF, GGUF = ("gemma3_text",), ("gemma3",)

HF_TENSORS = gemma2.HF_TENSORS | {
    "attention.q_norm": Plus(Tensor("model.layers.{i}.self_attn.q_norm.weight"), 1.0),
    "attention.k_norm": Plus(Tensor("model.layers.{i}.self_attn.k_norm.weight"), 1.0),
}
GGUF_TENSORS = gemma2.GGUF_TENSORS | {
    "attention.q_norm": Tensor("blk.{i}.attn_q_norm.weight"),
    "attention.k_norm": Tensor("blk.{i}.attn_k_norm.weight"),
}

LOCAL_THETA, GLOBAL_THETA = 1e4, 1e6
LAYERS_OF_27B = 62


def config_from_hf(fields: Fields) -> Config:
    """Config from the fields of config.json."""
    fields.only("attn_logit_softcapping", None)
    period = fields.integer("sliding_window_pattern", 6)
    windows = windows_from_hf(fields, window_from_hf(fields, absent=4096), lambda i: (i + 1) % period != 0)
    (local, all_seeing), scale = ropes_from_hf(fields), scale_from_hf(fields)
    mlp = geglu_from_hf(fields, post_norm=True)

    def layer(i: int):
        turn = all_seeing if windows[i] is None else local
        choices = {"rope": turn, "window": windows[i], "scale": scale}
        return attention_from_hf(fields, qk_norm="head", post_norm=True, **choices), mlp

    return decoder_from_hf(
        fields,
        layer,
        tied=True,
        harmless=("cache_implementation", "_sliding_window_pattern"),
        embed_scale=embed_scale_from_hf(fields),
        softcap=softcap_from_hf(fields, "final_logit_softcapping"),
    )


def ropes_from_hf(fields: Fields) -> tuple[Rope, Rope]:
    """Rotary positions of local and of global layers; only the latter were stretched."""
    k, theta = fields.integer("head_dim"), fields.number("rope_local_base_freq", LOCAL_THETA)
    if fields.has("rope_parameters"):
        local = rope_from_hf(fields, k, "sliding_attention", theta)
        return local, rope_from_hf(fields, k, "full_attention", GLOBAL_THETA)
    return rope.default(k, theta), rope_from_hf(fields, k, theta=GLOBAL_THETA)


def config_from_gguf(fields: Fields, source: Source) -> Config:
    """Config from the `gemma3.*` metadata."""
    window, period = window_from_gguf(fields), fields.integer("attention.sliding_window_pattern", 6)
    k, scale = fields.integer("attention.key_length"), scale_from_gguf(fields, LAYERS_OF_27B)
    expected = f"an even number up to {rope.MOST_CHANNELS}, for RoPE turns pairs of channels"
    fields.require(k % 2 == 0 and k <= rope.MOST_CHANNELS, "attention.key_length", expected)
    local = rope.default(k, fields.number("rope.freq_base_swa", LOCAL_THETA))
    all_seeing = rope_from_gguf(fields, source, k)
    mlp = mlp_from_gguf(fields, activation="gelu_tanh", post_norm=True)

    def layer(i: int):
        near = window is not None and (i + 1) % period != 0
        choices = {"rope": local if near else all_seeing, "window": window if near else None, "scale": scale}
        return attention_from_gguf(fields, source, qk_norm="head", post_norm=True, **choices), mlp

    return decoder_from_gguf(
        fields,
        source,
        layer,
        arch="gemma3",
        embed_scale=fields.integer("embedding_length") ** 0.5,
        softcap=fields.number("final_logit_softcapping") if fields.has("final_logit_softcapping") else None,
    )


def gguf_metadata(config: Config) -> Metadata:
    """The `gemma3.*` metadata of a config."""
    windows = [attention.window for attention, _ in config.layers]
    values: Metadata = {"attention.sliding_window_pattern": [*windows, None].index(None) + 1}
    for attention, _ in reversed(config.layers):
        if attention.window is None:
            values |= rope_to_gguf(attention.rope)
        else:
            values |= {"attention.sliding_window": attention.window}
            values |= {"rope.freq_base_swa": attention.rope.recipe.theta}
    if config.softcap is not None:
        values["final_logit_softcapping"] = config.softcap
    return decoder_to_gguf(config, "gemma3", values)
