"""What products of quantised matrices should give: every code at its exact value, all in float64."""

import numpy as np

from ..formats.blocks_ref import Coded, block_format, decode_blocks_ref
from ..formats.floats_ref import decode_float_ref


def int8_matmul_ref(x, w, x_scale, w_scale, *, x_zero=None) -> np.ndarray:
    """y[t,f] = x_scale[t] w_scale[f] sum_d (x[t,d] - x_zero[t]) w[f,d], of integers x [t d] and w [f d]."""
    zero = 0 if x_zero is None else np.asarray(x_zero, np.int64)[:, None]
    total = (np.asarray(x, np.int64) - zero) @ np.asarray(w, np.int64).T
    return total * np.outer(np.asarray(x_scale, np.float64), np.asarray(w_scale, np.float64))


def grouped_int_matmul_ref(x, w, x_scale, w_scale, *, w_zero=None) -> np.ndarray:
    """y[t,f] = x_scale[t] sum_d x[t,d] W[f,d], with W as in `dequantised_ref`, of integers x [t d] and w [f d]."""
    wide = np.asarray(x, np.float64) @ dequantised_ref(w, w_scale, w_zero).T
    return wide * np.asarray(x_scale, np.float64)[:, None]


def weight_only_matmul_ref(x, w, w_scale, *, w_zero=None) -> np.ndarray:
    """y = x W^T of numbers x [t d], with W as in `dequantised_ref`."""
    return np.asarray(x, np.float64) @ dequantised_ref(w, w_scale, w_zero).T


def dequantised_ref(w, w_scale, w_zero=None) -> np.ndarray:
    """W[f,d] = w_scale[f,c] (w[f,d] - w_zero[f,c]), c the group of d."""
    groups = np.asarray(w, np.float64).reshape(*w_scale.shape, -1)
    zero = 0 if w_zero is None else np.asarray(w_zero, np.float64)[..., None]
    return ((groups - zero) * np.asarray(w_scale, np.float64)[..., None]).reshape(w.shape)


def fp8_matmul_ref(x, w, x_scale, w_scale, *, x_format="e4m3fn", w_format="e4m3fn") -> np.ndarray:
    """y = X W^T, with X = decoded x [t d] times x_scale, and W the same of w [f d].

    Scales [a c] belong to tiles: each to t / a rows and d / c columns (f / a rows of w). So [1 1] is one scale for
    the tensor, [t 1] one a token, [f 1] one an output channel, and [f/128 d/128] one for each tile of 128 x 128.
    """
    x, w = (
        decode_float_ref(codes, name) * spread(np.asarray(scale, np.float64), codes.shape)
        for codes, scale, name in ((x, x_scale, x_format), (w, w_scale, w_format))
    )
    return x @ w.T


def spread(scale: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Scales [a c] for each element of a matrix of some shape."""
    return np.repeat(np.repeat(scale, shape[0] // scale.shape[0], 0), shape[1] // scale.shape[1], 1)


def mx_matmul_ref(x, w, x_scale, w_scale, *, format="mxfp4") -> np.ndarray:
    """y = X W^T of elements x [t d] and w [f d] with e8m0 scales [t c] and [f c], both in one format."""
    x, w = (decode_blocks_ref(Coded(*coded), format) for coded in ((x, x_scale), (w, w_scale)))
    return x @ w.T


def nvfp4_matmul_ref(x, w, x_scale, w_scale, x_tensor, w_tensor) -> np.ndarray:
    """y = x_tensor w_tensor X W^T of e2m1 codes x [t d], w [f d] with e4m3fn scales [t c], [f c] and f32 [].

    Unlike in `decode_blocks_ref` nothing is rounded between the two scales.
    """
    size = block_format("nvfp4").size
    x, w = (
        decode_float_ref(codes, "e2m1") * np.repeat(decode_float_ref(scale, "e4m3fn"), size, axis=1)
        for codes, scale in ((x, x_scale), (w, w_scale))
    )
    return x @ w.T * (float(x_tensor) * float(w_tensor))
