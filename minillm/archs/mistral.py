"""Mistral (Jiang et al. 2023, arXiv:2310.06825): Llama whose queries may look back a window only."""

from ..config import Config, Fields
from . import llama
from .from_hf import attention_from_hf, decoder_from_hf, mlp_from_hf, window_from_hf
from .llama import HARMLESS_TENSORS, HF_TENSORS  # noqa: F401
from .to_gguf import Metadata, plain

HF, GGUF = ("mistral",), ()  # llama.cpp writes it as a llama

GGUF_TENSORS, config_from_gguf = llama.GGUF_TENSORS, llama.config_from_gguf


def config_from_hf(fields: Fields) -> Config:
    """Config from the fields of config.json."""
    blocks = attention_from_hf(fields, window=window_from_hf(fields, absent=4096)), mlp_from_hf(fields)
    return decoder_from_hf(fields, lambda i: blocks)


def gguf_metadata(config: Config) -> Metadata:
    """The `llama.*` metadata of a config; they have no word for a window, unless it is one that hides nothing."""
    return llama.gguf_metadata(plain(config))
