import numpy as np


def rope_by_complex(x, pos, freqs):
    turned = (x[:, 0::2] + 1j * x[:, 1::2]) * np.exp(1j * pos[:, None] * freqs)
    return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)


def to_half(w, h):
    d, columns = w.shape
    pairs = w.reshape(d, h, columns // h // 2, 2)
    return pairs.swapaxes(2, 3).reshape(d, columns)


def full_circles(k, theta, context):
    freqs = theta ** (-np.arange(0, k, 2) / k)
    return int(np.sum(context * freqs >= 2 * np.pi))
