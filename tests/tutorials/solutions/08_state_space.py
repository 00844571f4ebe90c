import numpy as np


def half_life(dt, A):
    return np.log(2) / (-A * dt)


def causal_conv(x, weight, state):
    w = weight.shape[1]
    inputs = np.concatenate([state, x])
    y = np.stack([np.einsum("iw,wi->i", weight, inputs[t : t + w]) for t in range(len(x))])
    return y, inputs[len(inputs) - (w - 1) :]


def counting(tokens):
    dt = np.where(tokens == 1, 1e-6, 0.0)
    return dt, np.full(len(tokens), 1e6), np.ones(len(tokens))
