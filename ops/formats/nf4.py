"""NF4: four bits that mean quantiles of a normal distribution (QLoRA; Dettmers et al. 2023, arXiv:2305.14314).

    x = s NF4[code]    s = max|x| of 64 numbers, float32

The 16 numbers are those of the paper's appendix E. The nearest is taken, of two as near the lower one.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..shapes import shaped
from .checks import check_narrow
from .integers_ref import in_groups
from .rounding import divided, divided_ref, normal, normal_ref

SIZE = 64
NF4 = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)
MIDDLES = ((NF4[1:].astype(np.float64) + NF4[:-1]) / 2).astype(np.float32)


class CodedNF4(NamedTuple):
    """codes uint8 [..., n] from 0 to 15; scales f32 [..., n / 64]."""

    codes: Any
    scales: Any


def encode_nf4_ref(x: np.ndarray) -> CodedNF4:
    """Numbers x [..., n], n a multiple of 64. ValueError if it is not, or if x is not finite."""
    x = normal_ref(np.asarray(x, np.float32))
    groups = in_groups("encode_nf4_ref", x, SIZE)
    if not np.all(np.isfinite(x)):
        raise ValueError("encode_nf4_ref: x holds NaN or infinity, expected finite numbers")
    scales = np.max(np.abs(groups), axis=-1)
    scaled = divided_ref(groups, scales)
    codes = np.zeros(groups.shape, np.uint8)
    for middle in MIDDLES:
        codes += scaled > middle
    return CodedNF4(codes.reshape(x.shape), scales)


def decode_nf4_ref(coded: CodedNF4) -> np.ndarray:
    """Float64 numbers [..., n], exact."""
    groups = coded.codes.reshape(*coded.scales.shape, SIZE)
    return (NF4[groups].astype(np.float64) * coded.scales[..., None]).reshape(coded.codes.shape)


@shaped("x: ... float")
def encode_nf4(x: jax.Array) -> CodedNF4:
    """As `encode_nf4_ref`; numbers that are not finite give no error and no sense."""
    check_narrow("encode_nf4", x)
    x = normal(x.astype(jnp.float32))
    groups = in_groups("encode_nf4", x, SIZE)
    scales = jnp.max(jnp.abs(groups), axis=-1)
    scaled = divided(groups, scales)
    codes = jnp.sum(scaled[..., None] > MIDDLES, axis=-1, dtype=jnp.int32)
    return CodedNF4(codes.astype(jnp.uint8).reshape(x.shape), scales)


def decode_nf4(coded: CodedNF4) -> jax.Array:
    """Float32 numbers [..., n]: those of `decode_nf4_ref` rounded once, but 0 below the normal numbers."""
    groups = coded.codes.reshape(*coded.scales.shape, SIZE)
    return (jnp.asarray(NF4)[groups & 15] * coded.scales[..., None]).reshape(coded.codes.shape)
