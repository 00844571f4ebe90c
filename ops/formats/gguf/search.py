"""The search for scales: the least squared error of numbers that become small integers (or levels) times a scale.

    minimise    Σ w (x - s q)²          or      Σ w (x - s q + m)²,  m >= 0

over s, m and the codes q of a group. Each is easy where the other is known: the best codes for a scale are the
nearest ones, and the best scale for codes is that of linear regression, s = Σ w x q / Σ w q², which lessens the
error by (Σ w x q)² / Σ w q². Nothing finds both at once, so some scales are tried, each is improved by its codes,
and the best one is kept.

Types with two levels of scales are searched from the inside: the groups' scales, then the block's scale for them
(scales are numbers like others, and weigh Σ w q²), then in turns what is best while the rest stands still.

Numbers of a group lie on the last axis; what a group has one of has 1 there. All is float32.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .bits import nearest_f16

CLEARLY = np.float32(1 + 1e-6)  # better: of scales as good the first, so that like groups get like scales
ROUNDS = 2  # of improving two levels in turns: a third changes errors by less than one in a thousand


@dataclass(frozen=True)
class Codes:
    """What codes stand for, `least` to `most`, and how far from these two a range's end is tried.

    Within them some codes go unused, beyond them the end is cut off.
    """

    least: float
    most: float
    reach: float
    levels: Callable[[np.ndarray], np.ndarray] | None = None  # the nearest values, if they are not all integers

    def nearest(self, y: np.ndarray) -> np.ndarray:
        """What the codes nearest to y [...] stand for; y is in steps of the scale."""
        return self.levels(y) if self.levels else np.clip(np.rint(y), np.float32(self.least), np.float32(self.most))

    def ends(self) -> list[float]:
        """Where the largest magnitude is tried: around either end (0 is none)."""
        off = sorted(np.linspace(-self.reach, self.reach, 9), key=abs)
        return [end + one for end in (self.least, self.most) if end for one in off]

    def ranges(self) -> list[tuple[float, float]]:
        """Where the smallest and the largest number are tried."""
        off = sorted(np.linspace(-self.reach, self.reach, 5), key=abs)
        return [(self.least + first, self.most + last) for first in off for last in off]


def in_groups(x: np.ndarray, importance: np.ndarray | None, n: int) -> tuple[np.ndarray, np.ndarray]:
    """x and the weights of its errors, at most 1, in groups of n: [blocks, values] -> [blocks, groups, n] each."""
    w = np.ones_like(x)
    if importance is not None:
        most = np.max(importance, axis=1, keepdims=True)
        w = importance / np.where(most > 0, most, np.float32(1))
    return x.reshape(len(x), -1, n), w.reshape(len(x), -1, n)


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sums of products, [..., n] -> [..., 1]."""
    return np.einsum("...n,...n->...", a, b)[..., None]


def inverse(d: np.ndarray) -> np.ndarray:
    """1 / d, and 0 where d is too small to matter in any block."""
    nothing = np.abs(d) < np.float32(1e-30)
    return np.where(nothing, np.float32(0), 1 / np.where(nothing, np.float32(1), d))


def nearest_step(y: np.ndarray, scales: Codes) -> np.ndarray:
    """As `scales.nearest`, but 0 only of 0: with any step, however large, numbers may still get code 0."""
    s = scales.nearest(y)
    return np.where(s == 0, np.sign(y), s)


def fit_scale(x: np.ndarray, w: np.ndarray, codes: Codes) -> tuple[np.ndarray, np.ndarray]:
    """The best scale s found for numbers [..., n], and Σ w q², [..., 1] each."""
    first = np.argmax(np.abs(x), axis=-1, keepdims=True)
    unit, wx = inverse(np.take_along_axis(x, first, axis=-1)), w * x
    s, weight, gain = np.zeros_like(unit), np.zeros_like(unit), np.zeros_like(unit)
    for trial in codes.ends():
        q = codes.nearest(x * (unit * np.float32(trial)))
        xq, qq = dot(wx, q), dot(w * q, q)
        a = xq * inverse(qq)
        tried = a * xq  # Σ w x² - Σ w (x - a q)²
        better = tried > gain * CLEARLY
        s = np.where(better, a, s)
        weight, gain = np.where(better, qq, weight), np.where(better, tried, gain)
    return s, weight


def fit_line(x: np.ndarray, w: np.ndarray, codes: Codes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best scale s and minimum m >= 0 found for numbers [..., n], and Σ w q², [..., 1] each."""
    low = np.minimum(np.min(x, axis=-1, keepdims=True), 0)  # where m cannot be below 0
    above, unit = x - low, inverse(np.max(x, axis=-1, keepdims=True) - low)
    wx, w1 = w * x, np.sum(w, axis=-1, keepdims=True)
    x1 = np.sum(wx, axis=-1, keepdims=True)
    s, m, weight, gain = (np.zeros_like(low) for _ in range(4))
    for first, last in codes.ranges():
        q = codes.nearest(above * (unit * np.float32(last - first)) + np.float32(first))
        xq, qq, q1 = dot(wx, q), dot(w * q, q), dot(w, q)
        a, b = regression(xq, x1, qq, q1, w1)
        tried = a * (2 * xq - a * qq + 2 * b * q1) - b * (2 * x1 + b * w1)  # Σ w x² - Σ w (x - a q + b)²
        better = tried > gain * CLEARLY
        s, m = np.where(better, a, s), np.where(better, b, m)
        weight, gain = np.where(better, qq, weight), np.where(better, tried, gain)
    return s, m, weight


def regression(
    xq: np.ndarray, xp: np.ndarray, qq: np.ndarray, qp: np.ndarray, pp: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The s >= 0 and m >= 0 of least Σ w (x - s q + m p)², of its sums: xq is Σ w x q, and so on.

    Where q is (nearly) a multiple of p they are not both determined, and where one would be negative it is 0: then
    the best s for that m, and the best m for that s.
    """
    determinant = qq * pp - qp * qp
    m = np.where(determinant > np.float32(1e-6) * qq * pp, (xq * qp - xp * qq) * inverse(determinant), 0)
    s = np.maximum((xq + np.maximum(m, 0) * qp) * inverse(qq), 0)
    return s, np.maximum((s * qp - xp) * inverse(pp), 0)


def fit_scales(
    x: np.ndarray, w: np.ndarray, codes: Codes, scales: Codes
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x [blocks, groups, n] ≈ d s q with a float16 d [blocks, 1], integers s [blocks, groups] and q as x."""
    wx = w * x
    s, weight = (one[..., 0] for one in fit_scale(x, w, codes))
    d = nearest_f16(fit_scale(s, weight, scales)[0])
    s = nearest_step(s * inverse(d), scales)
    for _ in range(ROUNDS):
        q = codes.nearest(x * inverse(d * s)[..., None])
        xq, qq = dot(wx, q)[..., 0], dot(w * q, q)[..., 0]
        d = nearest_f16(dot(xq, s) * inverse(dot(qq * s, s)))
        s = nearest_step(xq * inverse(d * qq), scales)
    return d, s, codes.nearest(x * inverse(d * s)[..., None])


def fit_lines(
    x: np.ndarray, w: np.ndarray, codes: Codes, scales: Codes
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x ≈ d s q - dmin m: as `fit_scales`, with d and dmin in one array [blocks, 2] and m as s."""
    wx, w1 = w * x, np.sum(w, axis=-1)
    x1 = np.sum(wx, axis=-1)
    s, m, weight = (one[..., 0] for one in fit_line(x, w, codes))
    d = nearest_f16(fit_scale(s, weight, scales)[0])
    dmin = nearest_f16(fit_scale(m, w1, scales)[0])
    s, m = nearest_step(s * inverse(d), scales), scales.nearest(m * inverse(dmin))
    for _ in range(ROUNDS):
        q = codes.nearest((x + (dmin * m)[..., None]) * inverse(d * s)[..., None])
        xq, qq, q1 = dot(wx, q)[..., 0], dot(w * q, q)[..., 0], dot(w, q)[..., 0]
        d, dmin = regression(dot(xq, s), dot(x1, m), dot(qq * s, s), dot(q1 * s, m), dot(w1 * m, m))
        d, dmin = nearest_f16(d), nearest_f16(dmin)
        s = nearest_step(np.maximum(xq + dmin * m * q1, 0) * inverse(d * qq), scales)
        m = scales.nearest((d * s * q1 - x1) * inverse(dmin * w1))
    q = codes.nearest((x + (dmin * m)[..., None]) * inverse(d * s)[..., None])
    return np.concatenate([d, dmin], axis=1), s, m, q
