import numpy as np


def affine_int4(x):
    """the scales for numbers from 1.1 to 3.0 at [0, 0] is"""
    low, high = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)  # 0 may lie outside
    scales = (high - low) / 15
    zeros = np.rint(-low / scales)
    codes = np.clip(np.rint(x / scales) + zeros, 0, 15)
    return codes.astype(np.uint8), scales, zeros.astype(np.uint8)


def packed(codes):
    """the byte of -1 and 0 at [0, 0] is 255, expected 15"""
    codes = codes.view(np.uint8)
    return codes[:, ::2] | codes[:, 1::2] << 4  # the high bits of the first are still there
