import numpy as np


def balance_loss(logits, m):
    t, e = logits.shape
    chance = np.exp(logits - logits.max(axis=1, keepdims=True))
    chance /= chance.sum(axis=1, keepdims=True)
    chosen = np.argsort(-logits, axis=1)[:, :m]
    share = np.bincount(chosen.reshape(-1), minlength=e) / (t * m)
    return e * np.sum(share * chance.mean(axis=0))


def met_and_all(d, f, e, m, shared, layers):
    expert = 3 * d * f
    return layers * (expert * (m + shared) + d * e), layers * (expert * (e + shared) + d * e)


def route_with_bias(logits, bias, m):
    scores = 1 / (1 + np.exp(-logits))
    experts = np.argsort(-(scores + bias), axis=1, kind="stable")[:, :m]
    weights = np.take_along_axis(scores, experts, axis=1)
    return weights / weights.sum(axis=1, keepdims=True), experts
