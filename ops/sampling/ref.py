"""What each sampling filter means, on one row of logits at a time. A removed token has logit -inf.

Equal logits share one fate everywhere: no result depends on the order of the vocabulary.

    top-k      Fan et al. 2018, arXiv:1805.04833      keep the k largest
    top-p      Holtzman et al. 2020, arXiv:1904.09751 keep the smallest set of largest with mass >= p
    min-p      Nguyen et al. 2024, arXiv:2407.01082   keep what is at least p times as likely as the likeliest
    repetition Keskar et al. 2019, arXiv:1909.05858   section 4.1, in its usual form for logits of both signs
    presence, frequency                               subtract once / once per occurrence
"""

import numpy as np


def scale_temperature_ref(logits: np.ndarray, temperature: np.ndarray) -> np.ndarray:
    """Logits [b v] over temperature [b] > 0: below 1 sharpens, above 1 flattens."""
    return np.asarray(logits, np.float64) / np.asarray(temperature, np.float64)[:, None]


def keep_top_k_ref(logits: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Keep the k [b] largest of logits [b v], and all that equal the k-th; k >= v keeps everything."""
    y = np.array(logits, np.float64)
    for row in range(len(y)):
        kth = sorted(y[row], reverse=True)[min(int(k[row]), y.shape[1]) - 1]
        for token in range(y.shape[1]):
            if y[row, token] < kth:
                y[row, token] = -np.inf
    return y


def keep_top_p_ref(logits: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Keep the likeliest of logits [b v] until their probability reaches p [b], and equals of the last."""
    y = np.array(logits, np.float64)
    for row in range(len(y)):
        if p[row] >= 1:
            continue
        probability = softmax_ref(y[row])
        mass, least = 0.0, np.inf
        for value in sorted(probability, reverse=True):
            if mass >= p[row]:
                break
            mass, least = mass + value, value
        y[row, probability < least] = -np.inf
    return y


def keep_min_p_ref(logits: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Keep tokens of logits [b v] with probability >= p [b] times the largest probability."""
    y = np.array(logits, np.float64)
    for row in range(len(y)):
        probability = softmax_ref(y[row])
        y[row, probability < p[row] * probability.max()] = -np.inf
    return y


def penalise_repetition_ref(logits: np.ndarray, seen: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    """Shrink logits [b v] of tokens seen [b v]: positive ones divided by penalty [b], others multiplied."""
    y = np.array(logits, np.float64)
    for row, token in zip(*np.nonzero(seen), strict=True):
        y[row, token] *= 1 / penalty[row] if y[row, token] > 0 else penalty[row]
    return y


def penalise_counts_ref(
    logits: np.ndarray, counts: np.ndarray, presence: np.ndarray, frequency: np.ndarray
) -> np.ndarray:
    """Subtract from logits [b v] presence [b] once and frequency [b] times counts [b v], if counts > 0."""
    y = np.array(logits, np.float64)
    for row, token in np.ndindex(*y.shape):
        if counts[row, token] > 0:
            y[row, token] -= presence[row] + frequency[row] * counts[row, token]
    return y


def softmax_ref(logits: np.ndarray) -> np.ndarray:
    """Probabilities of one row of logits [v]."""
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()
