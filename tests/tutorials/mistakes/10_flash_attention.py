import numpy as np


def log_sum_exp(numbers):
    """of [0, log 3] is 1.7918, expected 1.3863"""
    peak, total = -np.inf, 0.0
    for number in numbers:
        peak = max(peak, number)
        total += np.exp(number - peak)  # what was summed before does not shrink
    return peak + np.log(total)


def join(y_one, lse_one, y_two, lse_two):
    """y at [0, 0] is"""
    return (y_one + y_two) / 2, np.logaddexp(lse_one, lse_two)


def visited(t, rows, columns, window):
    """visited(64, 16, 16, 1) is 10, expected 4"""
    return sum((min(first + rows, t) - 1) // columns + 1 for first in range(0, t, rows))  # the window is left out
