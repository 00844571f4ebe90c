"""Where float32 rounds in products of quantised matrices, in NumPy: what a kernel that follows a recipe gives.

Products of two codes are exact in float32, whatever the format, so a fused multiply-add makes no difference.
"""

import numpy as np

from ..formats.blocks_ref import block_format, numbers_of
from ..formats.floats_ref import decode_float_ref

F32 = np.float32


def int8_matmul_recipe(x, w, x_scale, w_scale, *, x_zero=None) -> np.ndarray:
    """int32 sums, less x_zero times those of w; to float32; times the rounded product of both scales."""
    total = x.astype(np.int32) @ w.astype(np.int32).T
    if x_zero is not None:
        total -= x_zero.astype(np.int32)[:, None] * w.astype(np.int32).sum(axis=1, dtype=np.int32)
    return total.astype(F32) * (x_scale[:, None] * w_scale[None, :])


def grouped_int_matmul_recipe(x, w, x_scale, w_scale, *, w_zero=None) -> np.ndarray:
    """int32 sums in each group, less w_zero times those of x; to float32; times w_scale; added from group to group;
    times x_scale.
    """
    c = w_scale.shape[1]
    x, w = (codes.astype(np.int32).reshape(len(codes), c, -1) for codes in (x, w))
    y = np.zeros((len(x), len(w)), F32)
    for group in range(c):
        total = x[:, group] @ w[:, group].T
        if w_zero is not None:
            total -= x[:, group].sum(axis=1, dtype=np.int32)[:, None] * w_zero[:, group].astype(np.int32)
        y = y + total.astype(F32) * w_scale[:, group]
    return y * x_scale[:, None]


def fp8_matmul_recipe(x, w, x_scale, w_scale, *, x_format="e4m3fn", w_format="e4m3fn") -> np.ndarray:
    """Sums in order within each group; times the rounded product of both scales; added from group to group."""
    x, w = decode_float_ref(x, x_format).astype(F32), decode_float_ref(w, w_format).astype(F32)
    x_scale, w_scale = (
        np.repeat(scale, len(codes) // len(scale), 0) for scale, codes in ((x_scale, x), (w_scale, w))
    )
    return scaled_sums(in_order(x, w, x_scale.shape[1]), x_scale[:, None] * w_scale[None])


def mx_matmul_recipe(x, w, x_scale, w_scale, *, format="mxfp4") -> np.ndarray:
    """Sums in the order of d within each block; times both powers of two; added from block to block."""
    form = block_format(format)
    x, w = (numbers_of(codes, form).astype(F32) for codes in (x, w))
    exponents = x_scale[:, None].astype(int) + w_scale[None] - 254
    scales = np.ldexp(1.0, exponents)  # beyond float32's range perhaps, what it scales is not
    scales = np.where((x_scale[:, None] == 255) | (w_scale[None] == 255), np.nan, scales)
    return scaled_sums(in_order(x, w, x_scale.shape[1]), scales)


def nvfp4_matmul_recipe(x, w, x_scale, w_scale, x_tensor, w_tensor) -> np.ndarray:
    """Sums within each block times both its scales, all exact; added from block to block; times the rounded product
    of the tensors' scales.
    """
    x, w = (decode_float_ref(codes, "e2m1").astype(F32) for codes in (x, w))
    x_scale, w_scale = (decode_float_ref(codes, "e4m3fn").astype(F32) for codes in (x_scale, w_scale))
    y = scaled_sums(in_order(x, w, x_scale.shape[1]), x_scale[:, None] * w_scale[None])
    return y * (F32(x_tensor) * F32(w_tensor))


def in_order(x: np.ndarray, w: np.ndarray, c: int) -> np.ndarray:
    """Sums f32 [t f c] of x [t d] times w [f d] over each of c groups, one product after the other."""
    x, w = (one.reshape(len(one), c, -1) for one in (x, w))
    y = np.zeros((len(x), len(w), c), F32)
    for place in range(x.shape[2]):
        y = y + x[:, None, :, place] * w[None, :, :, place]
    return y


def scaled_sums(parts: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Sum f32 [t f] of parts times scales [t f c], one group after the other, products rounded too."""
    y = np.zeros(parts.shape[:2], F32)
    for group in range(parts.shape[2]):
        y = y + (parts[..., group] * scales[..., group]).astype(F32)
    return y
