import numpy as np


def half_life(dt, A):
    """half_life(0.1, -1.0) is 10, expected 6.9315"""
    return 1 / (-A * dt)


def causal_conv(x, weight, state):
    """y at [0, 0] is"""
    w = weight.shape[1]
    inputs = np.concatenate([state, x])
    y = np.stack([np.einsum("iw,wi->i", weight[:, ::-1], inputs[t : t + w]) for t in range(len(x))])  # reversed
    return y, inputs[len(inputs) - (w - 1) :]


def counting(tokens):
    """the count at ["""
    return np.ones(len(tokens)), np.ones(len(tokens)), tokens  # everything fades
