"""OLMoE (Muennighoff et al. 2024, arXiv:2409.02060): 64 small experts a layer, eight for each token.

The weights of a token's experts are not made to sum to one, and queries and keys are normed over all heads at once.
"""

from ..config import Config, Fields
from .from_gguf import attention_from_gguf, decoder_from_gguf, moe_from_gguf
from .from_hf import attention_from_hf, decoder_from_hf, moe_from_hf
from .llama import HARMLESS_TENSORS  # noqa: F401
from .qwen3_moe import GGUF_TENSORS, HF_TENSORS  # noqa: F401
from .tensors import Source
from .to_gguf import Metadata, decoder_to_gguf

HF, GGUF = ("olmoe",), ("olmoe",)


def config_from_hf(fields: Fields) -> Config:
    """Config from the fields of config.json."""
    fields.only("attention_bias", False)
    fields.only("clip_qkv", None)
    moe = moe_from_hf(fields, "intermediate_size", normalise=fields.flag("norm_topk_prob", False))
    blocks = attention_from_hf(fields, qk_norm="all"), moe
    return decoder_from_hf(fields, lambda i: blocks)


def config_from_gguf(fields: Fields, source: Source) -> Config:
    """Config from the `olmoe.*` metadata."""
    moe = moe_from_gguf(fields, "feed_forward_length", normalise=False)
    blocks = attention_from_gguf(fields, source, qk_norm="all"), moe
    return decoder_from_gguf(fields, source, lambda i: blocks, arch="olmoe")


def gguf_metadata(config: Config) -> Metadata:
    """The `olmoe.*` metadata of a config."""
    return decoder_to_gguf(config, "olmoe", expert_size="feed_forward_length")
