"""What rounding the weights did: to each matrix, and to what flows through the layers."""

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..generate import Plan, advance, i32, padded
from ..model import Model
from ..quant import by_place, is_weight
from ..sampling import new_sampler
from .record import Record, stream_of
from .watched import watched


def rounding_errors(before: Model, after: Model) -> dict[str, float]:
    """By place of a matrix in the model: |W - Q| / |W| of those that were rounded."""
    errors = {}
    for (place, w), (_, q) in zip(matrices(before), matrices(after), strict=True):
        if q is not w:
            exact, rounded = (np.asarray(one.dense(), np.float32) for one in (w, q))
            errors[place] = float(np.linalg.norm(exact - rounded) / np.linalg.norm(exact))
    return errors


def matrices(part: Any) -> Iterable[tuple[str, Any]]:
    """The matrices of a model or block by name."""
    return [(place, leaf) for place, leaf in by_place(part)[0] if is_weight(leaf)]


def rounded_in(block: int, errors: dict[str, float]) -> dict[str, float]:
    """Of the errors those in one block, by the place in it."""
    inside = re.compile(rf"blocks\[{block}\]\.(.*)")
    found = {place: inside.fullmatch(place) for place in errors}
    return {match[1]: errors[place] for place, match in found.items() if match}


def stream_errors(record: Record, exact: Model) -> np.ndarray:
    """How far rounding moved the residual stream: |x - exact x| / |exact x| [blocks + 1, s] in front of each block
    and behind the last, for each of the s tokens that were read and stayed.

    exact is the model that the record's was rounded from; it reads the same text at once.
    """
    text = record.text[:-1]
    plan, greedy = Plan.of(text, 1, record.lm.config.context), new_sampler(temperature=0.0)
    (state, _), (tokens, n), spy = plan.begin(exact, greedy), padded(text), watched(exact)
    told, _, _ = advance(spy, state, None, greedy, tokens, i32(0), i32(n))
    seen = [{name: np.asarray(one.seen[name])[0, :n] for name in ("x", "y")} for one in told]
    expected = stream_of(seen)
    found = np.concatenate([stream_of(one.blocks)[:, : one.n_kept] for one in record.passes], axis=1)
    return np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
