import numpy as np


def draw_rows(chances, darts):
    passed = np.cumsum(chances, axis=1)
    return np.argmax(passed > darts[:, None] * passed[:, -1:], axis=1)


def chances_of(logits):
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def n_top_p(logits, p):
    if p >= 1:
        return len(logits)
    chance = chances_of(logits)
    falling = np.sort(chance)[::-1]
    last = int(np.sum(np.cumsum(falling) < p))
    return int(np.sum(chance >= falling[last]))


def temperature_for(logits, nats):
    low, high = 0.01, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        chance = chances_of(logits / middle)
        entropy = -np.sum(chance * np.log(np.maximum(chance, 1e-300)))
        low, high = (middle, high) if entropy < nats else (low, middle)
    return low
