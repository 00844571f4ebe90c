import numpy as np


def window_attention(q, k, v, window):
    distance = np.arange(len(q))[:, None] - np.arange(len(k))[None]
    score = np.where((distance >= 0) & (distance < window), q @ k.T / np.sqrt(q.shape[1]), -np.inf)
    weight = np.exp(score - score.max(axis=1, keepdims=True))
    return weight / weight.sum(axis=1, keepdims=True) @ v


def safe_softmax(score):
    weight = np.exp(score - score.max(axis=1, keepdims=True))
    return weight / weight.sum(axis=1, keepdims=True)


def harmless_order(t):
    return np.arange(t)[::-1]
