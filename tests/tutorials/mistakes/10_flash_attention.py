import numpy as np


def log_sum_exp(numbers):
    """of [0, log 3] is 1.7918, expected 1.3863"""
    peak, total = -np.inf, 0.0
    for number in numbers:
        peak = max(peak, number)
        total += np.exp(number - peak)  # what was summed before does not shrink
    return peak + np.log(total)


def visited(t, rows, columns, window):
    """visited(64, 16, 16, 1) is 10, expected 4"""
    return sum((min(first + rows, t) - 1) // columns + 1 for first in range(0, t, rows))  # the window is left out
