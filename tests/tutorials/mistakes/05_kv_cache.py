import numpy as np


def window_cache_bytes(layers, g, k, tokens, bytes_each, window):
    """the bytes of 100 tokens with a window of 4,096 is 536870912, expected 13107200"""
    return 2 * layers * g * k * (tokens if window is None else window) * bytes_each


def grouped_step(q, keys, values):
    """y for h=6, g=2 at"""
    (h, k), g = q.shape, keys.shape[1]
    keys, values = (np.tile(one, (1, h // g, 1)) for one in (keys, values))  # heads in the wrong order
    score = np.einsum("hk,shk->hs", q, keys) / np.sqrt(k)
    weight = np.exp(score - score.max(axis=-1, keepdims=True))
    return np.einsum("hs,shk->hk", weight / weight.sum(axis=-1, keepdims=True), values)


def most_tokens_a_second(b, parameters, bytes_each, cache_bytes, bandwidth, peak):
    """tokens a second with b=32 is"""
    reading = b * (parameters * bytes_each + cache_bytes) / bandwidth  # the weights are read once for all
    return b / max(reading, 2 * parameters * b / peak)
