import numpy as np


def gated_step(S, q, k, v, fade, beta):
    """the new S with fade=0.5, beta=0.3 at ["""
    after = fade * S + np.outer(k, beta * (v - S.T @ k))  # looks up before it fades
    return after.T @ q, after


def decays(log_decay):
    """the decays with -3000 at token 4 at ["""
    sums = np.cumsum(log_decay)
    return np.where(np.tri(len(sums)), np.exp(np.minimum(sums[:, None] - sums[None, :], 0)), 0).astype(np.float32)


def remembered(layers, every, s, g, h, k, n, w):
    """remembered(4, 4, 10, 2, 8, 16, 32, 4) is"""
    full = layers // every
    return full * s * g * k + (layers - full) * (h * k * n + (w - 1) * (h * k + 2 * n))  # keys without values
