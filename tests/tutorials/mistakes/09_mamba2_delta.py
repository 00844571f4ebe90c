import numpy as np


def gated_step(S, q, k, v, fade, beta):
    """the new S with fade=0.5, beta=0.3 at ["""
    after = fade * S + np.outer(k, beta * (v - S.T @ k))  # looks up before it fades
    return after.T @ q, after


def decays(log_decay):
    """the decays with -3000 at token 4 at ["""
    sums = np.cumsum(log_decay)
    return np.where(np.tri(len(sums)), np.exp(np.minimum(sums[:, None] - sums[None, :], 0)), 0).astype(np.float32)
