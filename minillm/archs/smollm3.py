"""SmolLM3 (Hugging Face 2025): Llama in which one layer of four has no rotary positions.

Such layers know of order only what the causal mask tells them (Yang et al. 2025, arXiv:2501.18795).
"""

from dataclasses import replace

from ..config import Config, Fields
from .from_gguf import attention_from_gguf, decoder_from_gguf, mlp_from_gguf
from .from_hf import attention_from_hf, decoder_from_hf, mlp_from_hf, window_from_hf, windows_from_hf
from .llama import GGUF_TENSORS, HARMLESS_TENSORS, HF_TENSORS  # noqa: F401
from .tensors import Source
from .to_gguf import Metadata, decoder_to_gguf

HF, GGUF = ("smollm3",), ("smollm3",)


def config_from_hf(fields: Fields) -> Config:
    """Config from the fields of config.json."""
    fields.only("attention_bias", False)
    fields.only("mlp_bias", False)
    turned, window = turned_from_hf(fields), window_from_hf(fields)
    if not fields.flag("use_sliding_window", False):
        window = None
    windows = windows_from_hf(fields, window, lambda i: window is not None and not turned[i])
    mlp = mlp_from_hf(fields)

    def layer(i: int):
        attention = attention_from_hf(fields, theta=2e6, window=windows[i])
        return attention if turned[i] else replace(attention, rope=None), mlp

    return decoder_from_hf(fields, layer, tied=True, harmless=("max_window_layers",))


def turned_from_hf(fields: Fields) -> tuple[bool, ...]:
    """Whether queries and keys are turned, for each layer; the list's name says the opposite of what it holds."""
    n_layers, period = fields.layer_count("num_hidden_layers"), fields.integer("no_rope_layer_interval", 4)
    if fields.has("no_rope_layers"):
        return tuple(one == 1 for one in fields.choices("no_rope_layers", n_layers, 0, 1))
    return tuple((i + 1) % period != 0 for i in range(n_layers))


def config_from_gguf(fields: Fields, source: Source) -> Config:
    """Config from the `smollm3.*` metadata."""
    turned, still = attention_from_gguf(fields, source), attention_from_gguf(fields, source, rope=None)
    mlp = mlp_from_gguf(fields)
    return decoder_from_gguf(fields, source, lambda i: (turned if (i + 1) % 4 else still, mlp), arch="smollm3")


def gguf_metadata(config: Config) -> Metadata:
    """The `smollm3.*` metadata of a config."""
    return decoder_to_gguf(config, "smollm3")
