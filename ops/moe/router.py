"""Which experts a token goes to, and how much each counts (definition in `ref.py`).

Two top-k selections do all the work: one over groups, one over experts.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ..shapes import shaped
from .ref import Scoring


@shaped("logits: t e float, bias: e float")
def route(
    logits: jax.Array,
    *,
    top_k: int,
    scoring: Scoring = "softmax",
    normalise: bool = True,
    bias: jax.Array | None = None,
    groups: int | None = None,
    top_groups: int | None = None,
    scale: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Arguments and result as in `route_ref`; weights in the logits' dtype, scores in float32 or wider.

    ValueError if an option is out of range or only one of `groups` and `top_groups` is given.
    """
    check_options(logits.shape[1], top_k, scoring, groups, top_groups)
    wide = np.promote_types(logits.dtype, np.float32)
    logits_wide = logits.astype(wide)
    scores = jax.nn.softmax(logits_wide, axis=1) if scoring == "softmax" else jax.nn.sigmoid(logits_wide)
    # Scores are in the logits' order, but two tiny ones may round to the same.
    rating = logits_wide if bias is None else scores + bias.astype(wide)
    rating = jnp.where(rating == 0, 0, rating)  # top_k would put -0 after 0
    if groups is not None and top_groups is not None:
        in_groups = rating.reshape(len(rating), groups, -1)
        counted = min(1 if bias is None else 2, in_groups.shape[2])
        strength = jnp.sum(jax.lax.top_k(in_groups, counted)[0], axis=2)
        _, best = jax.lax.top_k(strength, top_groups)
        allowed = jnp.any(best[:, :, None] == jnp.arange(groups, dtype=best.dtype), axis=1)  # t groups
        rating = jnp.where(allowed[:, :, None], in_groups, -jnp.inf).reshape(rating.shape)
    _, experts = jax.lax.top_k(rating, top_k)  # equals in order of their index
    weights = jnp.take_along_axis(scores, experts, axis=1)
    if normalise:
        weights /= jnp.sum(weights, axis=1, keepdims=True)
    return (weights * scale).astype(logits.dtype), experts


def check_options(e: int, top_k: int, scoring: str, groups: int | None, top_groups: int | None) -> None:
    """ValueError that names the first option that cannot be meant."""
    if scoring not in ("softmax", "sigmoid"):
        raise ValueError(f"route: scoring is {scoring!r}, expected 'softmax' or 'sigmoid'")
    if (groups is None) != (top_groups is None):
        raise ValueError(f"route: groups is {groups} and top_groups {top_groups}, expected both or neither")
    choosable = e
    if groups is not None and top_groups is not None:
        if groups < 1 or e % groups:
            raise ValueError(f"route: groups is {groups}, expected a divisor of e = {e}")
        if not 1 <= top_groups <= groups:
            raise ValueError(f"route: top_groups is {top_groups}, expected 1 to groups = {groups}")
        choosable = top_groups * (e // groups)
    if not 1 <= top_k <= choosable:
        raise ValueError(f"route: top_k is {top_k}, expected 1 to {choosable}, the experts that can be chosen")
