"""Reference kernels: pure functions on arrays, each beside its float64 definition.

Every op comes at least twice. `*_ref` is the definition: NumPy float64, explicit loops, the equation in its
docstring, no JAX. The other forms are readable JAX with the same signature, and tests hold them to the
definition. Nothing here keeps state or knows what a model is.

Dimensions, one letter each, everywhere in this project:

    b  batch              h  query heads         e  experts         c  chunk
    t  query time         g  KV heads            v  vocabulary      w  convolution width
    s  key time           r  = h / g             i  SSM inner       l  latent rank
    d  model              k  head dimension      n  SSM state       p  pages
    m  kept tokens        f  FFN                j  value channels   o  row in a page

`b t h k` means an array of shape [batch, query time, query heads, head dimension]; where an op's values have a
width of their own, it is `j`. What one op alone needs (`a`, the rotated channels of MLA) its file explains.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .activations import (
    clamped_swiglu,
    clamped_swiglu_ref,
    gelu,
    gelu_ref,
    gelu_tanh,
    gelu_tanh_ref,
    relu2,
    relu2_ref,
    silu,
    silu_ref,
    softplus,
    softplus_ref,
    swiglu,
    swiglu_ref,
)
from .attention.blocked import blocked_attention
from .attention.mla import absorbed_mla_attention, expanded_mla_attention
from .attention.mla_ref import mla_attention_ref
from .attention.naive import naive_attention
from .attention.paged import gathered_paged_attention, paged_attention
from .attention.paged_ref import paged_attention_ref
from .attention.ref import attention_ref
from .attention.ring import merge_across, ring_attention
from .attention.split import merge_attention, split_attention
from .cross_entropy import blocked_cross_entropy, cross_entropy, cross_entropy_ref
from .formats.blocks import decode_blocks, encode_blocks
from .formats.blocks_ref import BLOCKS, BlockFormat, decode_blocks_ref, encode_blocks_ref
from .formats.e8m0 import decode_e8m0, decode_e8m0_ref, encode_e8m0, encode_e8m0_ref
from .formats.floats import decode_float, encode_float
from .formats.floats_ref import FLOATS, FloatFormat, decode_float_ref, encode_float_ref
from .formats.gguf import GGUF_TYPES, GGUFType
from .formats.gguf.jax_decode import decode_gguf_blocks
from .formats.gguf.ref import decode_gguf_block_ref
from .formats.gguf.tensor import decode_gguf, encode_gguf
from .formats.integers import decode_ints, encode_ints
from .formats.integers_ref import INTS, IntFormat, decode_ints_ref, encode_ints_ref
from .formats.nf4 import NF4, decode_nf4, decode_nf4_ref, encode_nf4, encode_nf4_ref
from .formats.packing import pack, pack_ref, sign_extended, unpack, unpack_ref
from .moe.capacity import moe_capacity
from .moe.dense import moe_dense
from .moe.ref import moe_capacity_ref, moe_ref, route_ref
from .moe.router import route
from .moe.sorted import moe_sorted
from .norm import layer_norm, layer_norm_ref, rms_norm, rms_norm_ref
from .qmatmul.matmul import (
    fp8_matmul,
    grouped_int_matmul,
    int8_matmul,
    mx_matmul,
    nvfp4_matmul,
    weight_only_matmul,
)
from .qmatmul.recipes import (
    fp8_matmul_recipe,
    grouped_int_matmul_recipe,
    int8_matmul_recipe,
    mx_matmul_recipe,
    nvfp4_matmul_recipe,
)
from .qmatmul.ref import (
    fp8_matmul_ref,
    grouped_int_matmul_ref,
    int8_matmul_ref,
    mx_matmul_ref,
    nvfp4_matmul_ref,
    weight_only_matmul_ref,
)
from .rope import apply_rope, apply_rope_ref, rope_frequencies
from .sampling.filters import (
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise_counts,
    penalise_repetition,
    scale_temperature,
)
from .sampling.ref import (
    keep_min_p_ref,
    keep_top_k_ref,
    keep_top_p_ref,
    penalise_counts_ref,
    penalise_repetition_ref,
    scale_temperature_ref,
)
from .sampling.samplers import sample, sample_gumbel, sample_inversion
from .sampling.speculative import accept, accept_seeded, accept_tree
from .sampling.speculative_ref import accept_distribution_ref, accept_ref, accept_tree_ref, sample_ref
from .shapes import shaped
from .ssm.conv import causal_conv1d, causal_conv1d_ref
from .ssm.gated_delta import chunked_gated_delta, recurrent_gated_delta
from .ssm.ref import gated_delta_ref, selective_scan_ref, ssd_ref
from .ssm.selective_scan import associative_selective_scan, chunked_selective_scan, sequential_selective_scan
from .ssm.ssd import chunked_ssd, quadratic_ssd, recurrent_ssd

if TYPE_CHECKING:
    from . import judge
    from .judge import validate

__all__ = [
    "BLOCKS",
    "FLOATS",
    "GGUF_TYPES",
    "INTS",
    "NF4",
    "BlockFormat",
    "FloatFormat",
    "GGUFType",
    "IntFormat",
    "absorbed_mla_attention",
    "accept",
    "accept_distribution_ref",
    "accept_ref",
    "accept_seeded",
    "accept_tree",
    "accept_tree_ref",
    "apply_rope",
    "apply_rope_ref",
    "associative_selective_scan",
    "attention_ref",
    "blocked_attention",
    "blocked_cross_entropy",
    "causal_conv1d",
    "causal_conv1d_ref",
    "chunked_gated_delta",
    "chunked_selective_scan",
    "chunked_ssd",
    "clamped_swiglu",
    "clamped_swiglu_ref",
    "cross_entropy",
    "cross_entropy_ref",
    "decode_blocks",
    "decode_blocks_ref",
    "decode_e8m0",
    "decode_e8m0_ref",
    "decode_float",
    "decode_float_ref",
    "decode_gguf",
    "decode_gguf_block_ref",
    "decode_gguf_blocks",
    "decode_ints",
    "decode_ints_ref",
    "decode_nf4",
    "decode_nf4_ref",
    "encode_blocks",
    "encode_blocks_ref",
    "encode_e8m0",
    "encode_e8m0_ref",
    "encode_float",
    "encode_float_ref",
    "encode_gguf",
    "encode_ints",
    "encode_ints_ref",
    "encode_nf4",
    "encode_nf4_ref",
    "expanded_mla_attention",
    "fp8_matmul",
    "fp8_matmul_recipe",
    "fp8_matmul_ref",
    "gated_delta_ref",
    "gathered_paged_attention",
    "gelu",
    "gelu_ref",
    "gelu_tanh",
    "gelu_tanh_ref",
    "grouped_int_matmul",
    "grouped_int_matmul_recipe",
    "grouped_int_matmul_ref",
    "int8_matmul",
    "int8_matmul_recipe",
    "int8_matmul_ref",
    "judge",
    "keep_min_p",
    "keep_min_p_ref",
    "keep_top_k",
    "keep_top_k_ref",
    "keep_top_p",
    "keep_top_p_ref",
    "layer_norm",
    "layer_norm_ref",
    "merge_across",
    "merge_attention",
    "mla_attention_ref",
    "moe_capacity",
    "moe_capacity_ref",
    "moe_dense",
    "moe_ref",
    "moe_sorted",
    "mx_matmul",
    "mx_matmul_recipe",
    "mx_matmul_ref",
    "naive_attention",
    "nvfp4_matmul",
    "nvfp4_matmul_recipe",
    "nvfp4_matmul_ref",
    "pack",
    "pack_ref",
    "paged_attention",
    "paged_attention_ref",
    "penalise_counts",
    "penalise_counts_ref",
    "penalise_repetition",
    "penalise_repetition_ref",
    "quadratic_ssd",
    "recurrent_gated_delta",
    "recurrent_ssd",
    "relu2",
    "relu2_ref",
    "ring_attention",
    "rms_norm",
    "rms_norm_ref",
    "rope_frequencies",
    "route",
    "route_ref",
    "sample",
    "sample_gumbel",
    "sample_inversion",
    "sample_ref",
    "scale_temperature",
    "scale_temperature_ref",
    "selective_scan_ref",
    "sequential_selective_scan",
    "shaped",
    "sign_extended",
    "silu",
    "silu_ref",
    "softplus",
    "softplus_ref",
    "split_attention",
    "ssd_ref",
    "swiglu",
    "swiglu_ref",
    "unpack",
    "unpack_ref",
    "validate",
    "weight_only_matmul",
    "weight_only_matmul_ref",
]


def __getattr__(name: str) -> Any:
    """`validate` and `judge` are imported when they are first asked for: they need hypothesis, the ops do not."""
    if name == "judge":
        return importlib.import_module(".judge", __name__)
    if name == "validate":
        return importlib.import_module(".judge", __name__).validate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
