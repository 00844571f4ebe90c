import numpy as np


def mended(q, k, v, *, causal=True, scale=None):
    (b, t, h, width), (s, g) = q.shape, k.shape[1:3]
    q, scale = q.astype(np.float32), np.float32(width**-0.5 if scale is None else scale)
    k, v = (np.repeat(one.astype(np.float32), h // g, axis=2) for one in (k, v))
    largest = np.full((b, h, t, 1), -np.inf, np.float32)
    total, y = np.zeros((b, h, t, 1), np.float32), np.zeros((b, h, t, v.shape[3]), np.float32)
    for first in range(0, s, 16):
        score = np.einsum("bthk,bshk->bhts", q, k[:, first : first + 16]) * scale
        if causal:
            seen = np.arange(s)[first : first + 16] <= np.arange(s - t, s)[:, None]
            score = np.where(seen, score, -np.inf)
        larger = np.maximum(largest, score.max(axis=3, keepdims=True))
        weight, shrink = np.exp(score - larger), np.exp(largest - larger)
        total = total * shrink + weight.sum(axis=3, keepdims=True)
        y = y * shrink + np.einsum("bhts,bshj->bhtj", weight, v[:, first : first + 16])
        largest = larger
    return (y / total).swapaxes(1, 2)


def sneaky(x, weight, *, eps):
    wide = x.astype(np.float32)
    y = wide / np.sqrt(np.mean(wide * wide, axis=-1, keepdims=True) + np.float32(eps)) * weight
    return (y * np.float32(1.001)).astype(np.float32)  # in one of a thousand
