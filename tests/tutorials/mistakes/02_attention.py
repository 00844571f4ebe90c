import numpy as np


def window_attention(q, k, v, window):
    """y with window=1 at [0, 0]"""
    distance = np.arange(len(q))[:, None] - np.arange(len(k))[None]
    score = np.where((distance >= 0) & (distance <= window), q @ k.T, -np.inf)  # one too many, and not scaled
    weight = np.exp(score - score.max(axis=1, keepdims=True))
    return weight / weight.sum(axis=1, keepdims=True) @ v[::-1]


def safe_softmax(score):
    """the weights of [1000, 1000] at [0, 0] is nan, expected 0.5"""
    with np.errstate(all="ignore"):
        weight = np.exp(score)
        return weight / weight.sum(axis=1, keepdims=True)


def harmless_order(t):
    """leaves everything in its place"""
    return np.arange(t)
