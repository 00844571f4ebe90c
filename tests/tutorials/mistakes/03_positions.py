import numpy as np


def rope_by_complex(x, pos, freqs):
    """the turned x at [1, 0]"""
    turned = (x[:, 0::2] + 1j * x[:, 1::2]) * np.exp(-1j * pos[:, None] * freqs)  # clockwise
    return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)


def to_half(w, h):
    """the score of two keys of the same head at"""
    d, columns = w.shape
    return w.reshape(d, columns // 2, 2).swapaxes(1, 2).reshape(d, columns)  # as if there were one head


def full_circles(k, theta, context):
    """full_circles(32, 10000, 512) is 11, expected 8"""
    freqs = theta ** (-np.arange(0, k, 2) / k)
    return int(np.sum(context * freqs >= 1))
