import numpy as np


def window_cache_bytes(layers, g, k, tokens, bytes_each, window):
    return 2 * layers * g * k * (tokens if window is None else min(tokens, window)) * bytes_each


def grouped_step(q, keys, values):
    (h, k), g = q.shape, keys.shape[1]
    score = np.einsum("grk,sgk->grs", q.reshape(g, h // g, k), keys) / np.sqrt(k)
    weight = np.exp(score - score.max(axis=-1, keepdims=True))
    return np.einsum("grs,sgk->grk", weight / weight.sum(axis=-1, keepdims=True), values).reshape(h, k)


def most_tokens_a_second(b, parameters, bytes_each, cache_bytes, bandwidth, peak):
    reading = (parameters * bytes_each + b * cache_bytes) / bandwidth
    return b / max(reading, 2 * parameters * b / peak)
