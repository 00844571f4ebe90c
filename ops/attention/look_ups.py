"""Inputs on which attention is a look-up with an exact answer: each query gets the value of one key alone.

Off by one position, the answer is another key's: this finds what errors of rounding would hide.
"""

import numpy as np

from ..cases import Arrays
from .laws import Options, sizes, visibility

POWERS_OF_TWO = (-4.0, -2.0, -1.0, 1.0, 2.0, 4.0)  # values that no multiplication rounds


def look_up_keys(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Keys [b s g k]: in each channel whole numbers that differ along s, exact in bfloat16; a 1 in the last one."""
    b, s, g, k = shape
    rank = np.moveaxis(rng.permuted(np.tile(np.arange(s) - s // 2, (b, g, k, 1)), axis=3), 3, 1)
    rank[..., -1] = 1
    return np.where(abs(rank) > 256, 2 * rank - 256 * np.sign(rank), rank).astype(float)  # even from there on


def look_up_queries(keys: np.ndarray, arrays: Arrays, options: Options, rng: np.random.Generator) -> np.ndarray:
    """Queries [b t h k] each of which scores 0 on one of keys [b s h k] and -64 or less on all others it sees.

    It asks for the largest (or smallest) number in a channel: factor * (number - the winner's). A peak of exactly 0
    leaves no room for roundings, fused or not. Half the queries ask for a trap: the channel in which a key just
    ahead of them, or just out of the window, is far out.
    """
    queries = np.zeros((*sizes(arrays)[:2], *keys.shape[2:]))
    if keys.shape[3] == 1:
        return queries
    seen, ahead = visibility(arrays, options)
    factor = 2.0 ** np.ceil(np.log2(64 / options.get("scale", keys.shape[3] ** -0.5)))
    edges = [1, *(sign * options["window"] for sign in (-1, 1) if "window" in options)]
    for row, time, head in np.ndindex(*queries.shape[:3]):
        traps = np.flatnonzero(np.isin(ahead[row, time], edges))
        wanted = rng.choice(traps) if len(traps) and rng.random() < 0.5 else rng.integers(keys.shape[1])
        number = keys[row, :, head, :-1]  # s k-1
        channel = np.argmax(abs(number[wanted]))
        sign = 1 if number[wanted, channel] >= 0 else -1
        winner = sign * max(sign * number[seen[row, time], channel], default=0)
        queries[row, time, head, [channel, -1]] = factor * sign, -factor * sign * winner
    return queries
