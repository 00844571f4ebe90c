import numpy as np


def log_sum_exp(numbers):
    peak, total = -np.inf, 0.0
    for number in numbers:
        if number == -np.inf:
            continue
        higher = max(peak, number)
        total = total * np.exp(peak - higher) + np.exp(number - higher)
        peak = higher
    return peak + np.log(total)


def join(y_one, lse_one, y_two, lse_two):
    lse = np.logaddexp(lse_one, lse_two)
    base = np.where(lse == -np.inf, 0, lse)
    y = np.exp(lse_one - base)[:, None] * y_one + np.exp(lse_two - base)[:, None] * y_two
    return y, lse


def visited(t, rows, columns, window):
    count = 0
    for first in range(0, t, rows):
        last = min(first + rows, t) - 1
        oldest = 0 if window is None else max(0, first - window + 1)
        count += last // columns - oldest // columns + 1
    return count
