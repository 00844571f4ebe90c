"""Reference kernels: pure functions on arrays, each beside its float64 definition.

Every op comes at least twice. `*_ref` is the definition: NumPy float64, explicit loops, the equation in its
docstring, no JAX. The other forms are readable JAX with the same signature, and tests hold them to the
definition. Nothing here keeps state or knows what a model is.

Dimensions, one letter each, everywhere in this project:

    b  batch              h  query heads         e  experts         c  chunk
    t  query time         g  KV heads            v  vocabulary      w  convolution width
    s  key time           r  = h / g             i  SSM inner       l  latent rank
    d  model              k  head dimension      n  SSM state       p  pages
    m  kept tokens        f  FFN                                    o  row in a page

`b t h k` means an array of shape [batch, query time, query heads, head dimension].
"""

from .attention.naive import naive_attention
from .attention.ref import attention_ref
from .formats.gguf import GGUF_TYPES, GGUFType
from .formats.ref import decode_gguf_block_ref
from .norm import rms_norm, rms_norm_ref
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
from .shapes import shaped

__all__ = [
    "GGUF_TYPES",
    "GGUFType",
    "apply_rope",
    "apply_rope_ref",
    "attention_ref",
    "decode_gguf_block_ref",
    "keep_min_p",
    "keep_min_p_ref",
    "keep_top_k",
    "keep_top_k_ref",
    "keep_top_p",
    "keep_top_p_ref",
    "naive_attention",
    "penalise_counts",
    "penalise_counts_ref",
    "penalise_repetition",
    "penalise_repetition_ref",
    "rms_norm",
    "rms_norm_ref",
    "rope_frequencies",
    "scale_temperature",
    "scale_temperature_ref",
    "shaped",
]
