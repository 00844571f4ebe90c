import numpy as np


def gated_step(S, q, k, v, fade, beta):
    S = fade * S
    S = S + np.outer(k, beta * (v - S.T @ k))
    return S.T @ q, S


def decays(log_decay):
    t = len(log_decay)
    terms = np.where(np.tri(t, k=-1), log_decay[:, None], 0)
    return np.where(np.tri(t), np.exp(np.cumsum(terms, axis=0)), 0).astype(np.float32)
