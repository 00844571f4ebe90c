"""How far a result may lie from its float64 definition: bounds counted in roundings, never picked."""

import jax.numpy as jnp
import numpy as np


def unit(dtype) -> float:
    """Half an ulp at 1: the largest relative error of rounding once to `dtype`."""
    return float(jnp.finfo(dtype).eps) / 2


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64))))) if np.size(x) else 0.0


def assert_within(y, ideal: np.ndarray, bound: np.ndarray | float) -> None:
    """Every element lies within `bound` of the ideal; equal infinities count as no error."""
    y, bound = np.asarray(y, np.float64), np.broadcast_to(bound, np.shape(ideal))
    assert y.shape == np.shape(ideal)
    with np.errstate(invalid="ignore"):
        error = np.where(y == ideal, 0, np.abs(y - ideal))
    wrong = ~(error <= bound)  # NaN is wrong too
    assert not wrong.any(), f"{wrong.sum()} of {wrong.size} off, {error[wrong][0]:.3g} > {bound[wrong][0]:.3g}"


def assert_rms_within(y, ideal: np.ndarray, bound: float) -> None:
    """The RMS error is at most `bound`, and what is infinite is so in both."""
    y, ideal = np.asarray(y, np.float64), np.asarray(ideal, np.float64)
    finite = np.isfinite(ideal)
    assert y.shape == ideal.shape
    assert np.array_equal(y[~finite], ideal[~finite])
    error = rms(y[finite] - ideal[finite])
    assert error <= bound, f"RMS error {error:.3g} > {bound:.3g}"
