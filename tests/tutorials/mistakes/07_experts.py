import numpy as np


def balance_loss(logits, m):
    """the loss with m=1 is"""
    t, e = logits.shape
    share = np.bincount(np.argsort(-logits, axis=1)[:, :m].reshape(-1), minlength=e) / (t * m)
    return e * np.sum(share**2)  # the chance is left out: this has no gradient


def met_and_all(d, f, e, m, shared, layers):
    """met_and_all of tiny-moe is (3538944, 9437184), expected (3551232, 9449472)"""
    return layers * 3 * d * f * (m + shared), layers * 3 * d * f * (e + shared)  # no router


def route_with_bias(logits, bias, m):
    """the weights at [0, 0] is"""
    scores = 1 / (1 + np.exp(-logits)) + bias
    experts = np.argsort(-scores, axis=1, kind="stable")[:, :m]
    weights = np.take_along_axis(scores, experts, axis=1)  # of scores with the bias in them
    return weights / weights.sum(axis=1, keepdims=True), experts
