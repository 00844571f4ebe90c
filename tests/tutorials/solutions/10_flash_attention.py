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


def visited(t, rows, columns, window):
    count = 0
    for first in range(0, t, rows):
        last = min(first + rows, t) - 1
        oldest = 0 if window is None else max(0, first - window + 1)
        count += last // columns - oldest // columns + 1
    return count
