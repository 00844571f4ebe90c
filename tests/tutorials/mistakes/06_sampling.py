import numpy as np


def draw_rows(chances, darts):
    """the tokens for darts [0.0, 0.0, 0.0] at [0] is 0, expected 1"""
    return np.argmax(np.cumsum(chances, axis=1) >= darts[:, None], axis=1)


def n_top_p(logits, p):
    """n_top_p([1.0, 1.0, 1.0, 1.0], 0.3) is 2, expected 4"""
    weights = np.exp(logits - logits.max())
    falling = np.sort(weights / weights.sum())[::-1]
    return min(1 + int(np.sum(np.cumsum(falling) < p)), len(logits))


def temperature_for(logits, nats):
    """the entropy at the temperature you gave is"""
    return nats
