"""From sums over units of text to figures with 95 % confidence intervals, in memory that does not grow."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

# The KL divergence of a token is counted between these, in nats: 16 to the octave, and quantiles interpolate.
EDGES = 2.0 ** np.arange(-32, 17, 1 / 16)


class Figure(NamedTuple):
    """A value and its confidence interval, which is None with a single unit."""

    value: float
    low: float | None
    high: float | None


class Ratios:
    """sum x / sum n for several x, over units that have x [k] and are of size n, and how sure that is."""

    def __init__(self, k: int):
        self.n = self.nn = 0.0
        self.x, self.xx, self.xn = np.zeros((3, k))

    def add(self, x: np.ndarray, n: float) -> None:
        """One unit more."""
        self.n, self.nn = self.n + n, self.nn + n * n
        self.x, self.xx, self.xn = self.x + x, self.xx + x * x, self.xn + x * n

    def means(self, units: int) -> tuple[np.ndarray, np.ndarray]:
        """The ratios [k] and half the widths of their intervals [k], NaN if there is but one unit."""
        mean = self.x / self.n
        if units < 2:
            return mean, np.full_like(mean, np.nan)
        from scipy.special import stdtrit  # imported late: a quarter of a second

        residual = np.maximum(self.xx - 2 * mean * self.xn + mean**2 * self.nn, 0)  # sum of (x - mean n)^2
        error = np.sqrt(residual * units / (units - 1)) / self.n
        return mean, stdtrit(units - 1, 0.975) * error


class Tally:
    """All that is known of the units so far. paired: there is a reference."""

    def __init__(self, paired: bool):
        self.paired, self.units = paired, 0
        self.by_token, self.by_byte = Ratios(5 + len(EDGES) if paired else 1), Ratios(2 if paired else 1)

    @property
    def tokens(self) -> int:
        """How many were scored."""
        return int(self.by_token.n)

    @property
    def bytes(self) -> float:
        """How many bytes of text they stand for."""
        return self.by_byte.n

    def add(self, scores: np.ndarray, size: float) -> None:
        """One unit: scores float64 [measures.NAMES, n] of tokens that stand for `size` bytes."""
        x = scores.sum(axis=1)
        if self.paired:
            kld = np.sort(np.minimum(scores[2], EDGES[-1]))
            above = len(kld) - np.searchsorted(kld, EDGES, side="right")
            x = np.concatenate([x, [x[0] - x[1]], above])
        self.by_token.add(x, scores.shape[1])
        self.by_byte.add(x[: len(self.by_byte.x)] / math.log(2), size)
        self.units += 1

    def state(self) -> dict[str, Any]:
        """The tally as JSON knows it, and to the bit."""
        sums = [{name: np.asarray(one).tolist() for name, one in vars(r).items()} for r in self._ratios]
        return {"units": self.units, "sums": sums}

    def restore(self, state: dict[str, Any]) -> None:
        """Be as the tally that `state` is of."""
        self.units = state["units"]
        for ratios, sums in zip(self._ratios, state["sums"], strict=True):
            for name, value in sums.items():
                setattr(ratios, name, np.array(value) if isinstance(value, list) else value)

    @property
    def _ratios(self) -> tuple[Ratios, Ratios]:
        return self.by_token, self.by_byte

    def figures(self) -> dict[str, Figure]:
        """What `minillm.evaluate` defines, by name."""
        mean, half = self.by_token.means(self.units)
        bits, half_bits = self.by_byte.means(self.units)
        found = {"perplexity": figure(mean[0], half[0], exp), "bits_per_byte": figure(bits[0], half_bits[0])}
        if not self.paired:
            return found
        p, r, h, h_r, h_difference = exp(mean[0]), exp(mean[1]), half[0], half[1], half[4]
        half_delta = math.sqrt(max((p - r) * (p * h * h - r * h_r * h_r) + p * r * h_difference**2, 0))
        found["reference_perplexity"] = figure(mean[1], half[1], exp)
        found["reference_bits_per_byte"] = figure(bits[1], half_bits[1])
        found["delta_perplexity"] = figure(p - r, half_delta)  # to first order; the two vary together
        found["ln_perplexity_ratio"] = figure(mean[4], half[4])
        found["kld_mean"] = figure(mean[2], half[2], lambda x: max(x, 0.0))
        found["kld_p99"] = quantile(mean[5:], half[5:], 0.01)
        found["same_top"] = figure(mean[3], half[3], lambda x: min(max(x, 0.0), 1.0))
        return found


def figure(mean: float, half: float, of: Callable[[float], float] = float) -> Figure:
    """A growing function of a mean, and of the ends of the interval around it."""
    if math.isnan(half):
        return Figure(float(of(mean)), None, None)
    return Figure(float(of(mean)), float(of(mean - half)), float(of(mean + half)))


def exp(x: float) -> float:
    """e**x, infinite where it is too large."""
    with np.errstate(over="ignore"):
        return float(np.exp(x))


def quantile(above: np.ndarray, half: np.ndarray, rest: float) -> Figure:
    """What a share `rest` of the tokens exceeds, given the share above each of EDGES and half its interval."""

    def crossing(curve: np.ndarray) -> float:
        i = int(np.argmax(curve <= rest))  # the last is: nothing lies above it
        if i == 0:
            return 0.0
        part = (curve[i - 1] - rest) / (curve[i - 1] - curve[i])
        return float(EDGES[i - 1] * (EDGES[i] / EDGES[i - 1]) ** part)

    if np.isnan(half[0]):
        return Figure(crossing(above), None, None)
    return Figure(crossing(above), crossing(above - half), crossing(above + half))
