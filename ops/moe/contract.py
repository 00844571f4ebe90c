"""What all ways of running the experts ask of their arguments."""

import jax
import numpy as np
from jax.core import Tracer

CONTRACT = (
    "x: t d float, weights: t m float, experts: t m int, "
    "w_gate: e d f float, w_up: e d f float, w_down: e f d float"
)


def check_experts(op: str, experts: jax.Array, e: int) -> None:
    """ValueError unless the experts [t m] of each token are m different ones of 0 … e-1.

    Only values can tell, so inside jit, where there are none yet, nothing is checked.
    """
    if isinstance(experts, Tracer):
        return
    ids = np.sort(np.asarray(experts), axis=1)
    if ids.size and (ids.min() < 0 or ids.max() >= e):
        raise ValueError(f"{op}: experts [t m] holds {ids.min()} to {ids.max()}, expected 0 to e - 1 = {e - 1}")
    if (ids[:, 1:] == ids[:, :-1]).any():
        raise ValueError(f"{op}: experts [t m] names an expert twice for one token, expected m different ones")
