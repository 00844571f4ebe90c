"""How wrong is too wrong: errors counted in roundings, held against the naive form's in the same precision.

An error is divided by its *rounding*: what is to be expected at its place from one rounding of the result to the
output's dtype, and from float32, in which everything accumulates: one rounding of every input, another of what is
computed from them on the way, one for each term of the longest sum there may be, and one of a value as large as
the output is on the whole (1 + erf(x) loses that in gelu's tail). What rounding the inputs does is found by trying:
the definition is evaluated again on inputs that were moved so. Thus what is ill-conditioned is judged mildly and
what is not strictly, with no tolerance picked by hand.

    ratio = metric(kernel's errors) / max(metric(naive form's errors), metric(noise))      for max, p99.9 and RMS

where noise is normal with the naive form's RMS, or with one rounding if that is more: a tail that was short by
luck is no yardstick. A kernel passes with all ratios <= 2 (the rule of flash-attention's tests, there for the
maximum alone). The conventions of other projects are evaluated beside it; they are reported and decide nothing.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ..cases import Arrays

LIMIT = 2.0


class Metric(NamedTuple):
    """A summary of errors, and what it is for n of them that are normal with RMS 1."""

    of: Callable[[np.ndarray], float]
    of_noise: Callable[[int], float]


METRICS: Mapping[str, Metric] = {
    "max": Metric(lambda e: float(np.max(e)), lambda n: max(1.0, math.sqrt(2 * math.log(n)))),
    "p99.9": Metric(
        lambda e: float(np.sort(e, axis=None)[int(0.999 * (e.size - 1))]),  # np.quantile cannot sort infinity
        lambda n: min(3.29, max(1.0, math.sqrt(2 * math.log(n)))),
    ),
    "rms": Metric(lambda e: float(np.sqrt(np.mean(np.square(e)))), lambda n: 1.0),
}
UNIT32 = 2.0**-24
MOVES = 3  # how often the inputs are moved to see what rounding does


class Ideal(NamedTuple):
    """What an op should return for one trial, and how far rounding alone takes a kernel from it."""

    outputs: tuple[np.ndarray, ...]  # float64
    naive: tuple[np.ndarray, ...]  # the yardstick's, in its own dtypes
    rounding: tuple[np.ndarray, ...]  # one for each element


def widened(arrays: Arrays) -> Arrays:
    """The same values with every float in float64, as definitions want them."""
    return {n: x.astype(np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x for n, x in arrays.items()}


@np.errstate(all="ignore")
def find_ideal(reference: Callable[[Arrays], tuple], naive: tuple, arrays: Arrays) -> Ideal:
    """Evaluate the definition on the arrays, and on copies of them that float32 rounding moved."""
    exact = widened(arrays)
    outputs = tuple(np.asarray(y, np.float64) for y in reference(exact))
    moved = []
    for seed in range(MOVES):
        rng = np.random.default_rng(seed)
        floats = {name: x for name, x in exact.items() if x.dtype == float}
        noisy = {name: x * (1 + UNIT32 * rng.normal(size=x.shape)) for name, x in floats.items()}
        moved.append([np.asarray(y, np.float64) for y in reference({**exact, **noisy})])
    terms = max((size for x in arrays.values() for size in x.shape), default=1)
    rounding = tuple(
        rounding_of(y, [other[i] for other in moved], naive[i].dtype, terms) for i, y in enumerate(outputs)
    )
    return Ideal(outputs, naive, rounding)


def rounding_of(y: np.ndarray, moved: list[np.ndarray], dtype, terms: int) -> np.ndarray:
    """One rounding for each element: of result, whole, a sum of `terms`, and the inputs as they show in it."""
    if not jnp.issubdtype(dtype, jnp.floating):
        return np.zeros(y.shape)
    info = jnp.finfo(dtype)
    least = max(float(info.smallest_subnormal), float(jnp.finfo(jnp.float32).smallest_normal))  # may be flushed
    shifts = [np.where(y == other, 0, other - y) for other in moved]
    inputs = np.sqrt(sum(np.square(typical(shift)) for shift in shifts) / len(shifts))
    running_sum = math.sqrt(terms) * UNIT32 * typical(y)  # a random walk: Higham and Mary 2019, theorem 2.4
    whole = UNIT32 * math.sqrt(finite_squares(y).sum() / max(y.size, 1))
    return float(info.eps) / 2 * typical(y) + 2 * inputs + running_sum + whole + least


def typical(x: np.ndarray) -> np.ndarray:
    """The size to be expected of each element: from its row and channel, its place along each axis, and itself.

    The largest of the three. Single elements are too few to be a measure, and so may rows be: one that is near 0 by
    chance is no better known for it. The other estimates are products of mean squares, one factor a direction.
    """
    if not x.size:
        return np.zeros(x.shape)
    squares = finite_squares(x)
    axes = tuple(range(x.ndim))
    by_place = separable(squares, [axes[:axis] + axes[axis + 1 :] for axis in axes])
    by_row = separable(squares, [axes[-1:], axes[:-1]])
    return np.sqrt(np.max([by_place, by_row, squares], axis=0))


def finite_squares(x: np.ndarray) -> np.ndarray:
    """Squares, 0 for what is infinite or NaN."""
    return np.square(np.where(np.isfinite(x), x, 0))


def separable(squares: np.ndarray, directions: list[tuple[int, ...]]) -> np.ndarray:
    """The product of the means over each group of axes, as parts of the mean of all."""
    total = squares.mean() or 1.0
    size = np.full(squares.shape, total)
    for axes in directions:
        size = size * (squares.mean(axis=axes, keepdims=True) / total)
    return size


@np.errstate(all="ignore")
def errors(found: np.ndarray, ideal: np.ndarray, rounding: np.ndarray) -> np.ndarray:
    """Distance from the ideal in roundings; equal infinities are equal, NaN is infinitely wrong."""
    found = np.asarray(found, np.float64)
    distance = np.abs(found - ideal) / rounding
    distance = np.where(found == ideal, 0.0, distance)
    return np.where(np.isnan(distance), np.inf, distance)


@np.errstate(all="ignore")
def ratios(found: tuple, ideal: Ideal) -> dict[str, float]:
    """For each metric the worst ratio over the outputs; none if the naive form fails at every element.

    Where the naive form itself is infinitely wrong, as when its dtype overflows, nothing is asked of a kernel.
    """
    worst: dict[str, float] = {}
    for y, exact, naive, rounding in zip(found, ideal.outputs, ideal.naive, ideal.rounding, strict=True):
        ours, yardstick = errors(y, exact, rounding), errors(naive, exact, rounding)
        known = np.isfinite(yardstick)
        for name, metric in METRICS.items() if known.any() else ():
            ratio = metric.of(ours[known]) / expected(metric, yardstick[known])
            worst[name] = max(worst.get(name, 0.0), ratio)
    return worst


def expected(metric: Metric, yardstick: np.ndarray) -> float:
    """What a metric should be for a kernel as good as the naive form, whose errors are the yardstick."""
    return max(metric.of(yardstick), metric.of_noise(yardstick.size) * max(METRICS["rms"].of(yardstick), 1.0))


def shape_fault(found: tuple, ideal: Ideal, names: tuple[str, ...]) -> str | None:
    """What is wrong with the number or the shapes of the outputs."""
    if len(found) != len(ideal.outputs):
        return f"returned {len(found)} outputs, expected {len(ideal.outputs)}: {', '.join(names)}"
    for name, y, exact in zip(names, found, ideal.outputs, strict=False):
        if y.shape != exact.shape:
            return f"{name} has shape {list(y.shape)}, expected {list(exact.shape)}"
    return None


@np.errstate(all="ignore")
def conventions(found: tuple, ideal: Ideal, dtype: str) -> dict[str, bool]:
    """Whether the rules of other projects (ops/README.md) would have let the outputs pass."""
    verdicts = dict.fromkeys(("flash-attention", "vLLM", "flash-linear-attention", "ggml", "allclose(1e-2)"), True)
    atol, rtol = {"float32": (1e-5, 1.3e-6), "float16": (1e-3, 1e-3), "bfloat16": (1e-3, 1.6e-2)}[dtype]
    for y, exact, naive in zip(found, ideal.outputs, ideal.naive, strict=True):
        finite = np.isfinite(exact)
        y, exact, naive = (np.asarray(x, np.float64)[finite] for x in (y, exact, naive))
        if not exact.size:
            continue
        error, naive_error, size = np.abs(y - exact), np.abs(naive - exact), np.square(exact).sum()
        one_rounding = np.abs(exact.astype(jnp.dtype(dtype)).astype(np.float64) - exact).max()
        passed = {
            "flash-attention": error.max() <= 2 * naive_error.max() + one_rounding,
            "vLLM": np.all(error <= atol + rtol * np.abs(exact)),
            "flash-linear-attention": np.square(error).sum() <= 0.005**2 * size,
            "ggml": np.square(error).sum() <= 1e-7 * size,
            "allclose(1e-2)": np.all(error <= 1e-2 + 1e-2 * np.abs(exact)),
        }
        verdicts = {name: verdict and bool(passed[name]) for name, verdict in verdicts.items()}
    return verdicts
