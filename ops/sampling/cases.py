"""What the sampling filters are tried on, and all ops of this folder.

Draws keep away from the borders where rounding may decide which token stays: logits stand on a grid that every
float format holds, and p lies halfway between two masses, or two steps of the grid, that can be reached.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..cases import Arrays, Call, Case, Law, Op
from . import filters, ref
from .draw_cases import DRAWING, SAMPLERS

GRID = 1 / 8
SIZES = ((1, 1), (1, 2), (3, 5), (4, 33), (2, 127), (2, 256), (3, 1025), (1, 5000))
CASES = tuple(Case(f"{b} x {v}", {"b": b, "v": v}) for b, v in SIZES)

Options = Callable[[np.ndarray, np.random.Generator], Arrays]


def draw_logits(case: Case, rng: np.random.Generator) -> np.ndarray:
    """Logits [b v] on the grid, so that larger vocabularies have ties."""
    return np.round(3 * rng.normal(size=(case.sizes["b"], case.sizes["v"])) / GRID) * GRID


def temperatures(logits: np.ndarray, rng: np.random.Generator) -> Arrays:
    """From nearly greedy to nearly uniform."""
    return {"temperature": 2 ** rng.uniform(-4, 4, len(logits))}


def counts_to_keep(logits: np.ndarray, rng: np.random.Generator) -> Arrays:
    """k from 1 to beyond the vocabulary."""
    return {"k": rng.integers(1, logits.shape[1] + 3, len(logits)).astype(np.int32)}


def masses_to_keep(logits: np.ndarray, rng: np.random.Generator) -> Arrays:
    """p halfway between two masses that sets of likeliest tokens have, sometimes 1."""
    p = np.ones(len(logits))
    for row in range(len(logits)):
        falling = np.sort(ref.softmax_ref(logits[row]))[::-1]
        last_of_equals = np.append(falling[1:] != falling[:-1], True)
        reached = np.append(0, np.cumsum(falling)[last_of_equals])
        gap = rng.choice(np.flatnonzero(np.diff(reached) > 1e-3))
        p[row] = (reached[gap] + reached[gap + 1]) / 2 if rng.random() < 0.75 else 1
    return {"p": p}


def shares_to_keep(logits: np.ndarray, rng: np.random.Generator) -> Arrays:
    """p whose logarithm lies halfway between two steps of the grid."""
    return {"p": np.exp(-GRID * (rng.integers(40, size=len(logits)) + 0.5))}


def repetitions(logits: np.ndarray, rng: np.random.Generator) -> Arrays:
    """Half of the tokens were seen; rewards (below 1) are legal too."""
    return {"seen": rng.random(logits.shape) < 0.5, "penalty": rng.uniform(0.5, 2, len(logits))}


def occurrences(logits: np.ndarray, rng: np.random.Generator) -> Arrays:
    """Few counts above 0; penalties of both signs."""
    counts = np.maximum(rng.integers(-3, 6, logits.shape), 0).astype(np.int32)
    return {"counts": counts, "presence": rng.normal(size=len(logits)), "frequency": rng.normal(size=len(logits))}


def rounded(arrays: Arrays) -> Arrays:
    """What divides becomes a power of two and what is subtracted a whole number, so that results are exact."""
    powers = {name: 2 ** np.round(np.log2(arrays[name])) for name in ("temperature", "penalty") if name in arrays}
    wholes = {name: np.round(arrays[name]) for name in ("presence", "frequency") if name in arrays}
    return {**arrays, **powers, **wholes}


def all_equal(logits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One tie of all tokens."""
    return np.zeros_like(logits)


def signed_zeros(logits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A few whole numbers, 0 and -0 among them, which are equal."""
    return np.clip(np.round(logits), -1, 1) * rng.choice([-1.0, 1.0], logits.shape)


def forbidden(logits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Most tokens are impossible already; the likeliest stays."""
    stays = (logits == logits.max(axis=1, keepdims=True)) | (rng.random(logits.shape) < 0.3)
    return np.where(stays, logits, -np.inf)


def peaked(logits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One token has almost all the mass."""
    logits = logits.copy()
    logits[np.arange(len(logits)), rng.integers(logits.shape[1], size=len(logits))] += 32
    return logits


def huge(logits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """exp of these overflows."""
    return 1024 * logits


LOGITS = {
    "all equal": all_equal,
    "signed zeros": signed_zeros,
    "forbidden": forbidden,
    "peaked": peaked,
    "huge": huge,
}


def reordered(call: Call, arrays: Arrays, options: Mapping[str, Any], rng: np.random.Generator):
    """The order of the vocabulary does not matter."""
    order = rng.permutation(arrays["logits"].shape[1])
    (y,) = call(**arrays, **options)
    moved = {name: x[:, order] for name, x in arrays.items() if x.ndim == 2}
    return (y[:, order],), call(**{**arrays, **moved}, **options)


def shifted(call: Call, arrays: Arrays, options: Mapping[str, Any], rng: np.random.Generator):
    """A constant added to all logits stays there and changes no choice."""
    (y,) = call(**arrays, **options)
    return (y + 2,), call(**{**arrays, "logits": arrays["logits"] + arrays["logits"].dtype.type(2)}, **options)


def filter_op(name: str, options: Options, styles: tuple[str, ...], *laws: Law) -> Op:
    """An op logits [b v], options [b] -> logits [b v]; options are drawn to fit the logits."""

    def draw(case: Case, rng: np.random.Generator) -> Arrays:
        logits = draw_logits(case, rng)
        return {"logits": logits, **options(logits, rng)}

    def exact(case: Case, rng: np.random.Generator) -> Arrays:
        return rounded(draw(case, rng))

    def styled(change: Callable[[np.ndarray, np.random.Generator], np.ndarray]):
        def style(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
            logits = change(arrays["logits"], rng)
            return {"logits": logits, **options(logits, rng)}

        return style

    names = tuple(options(np.zeros((1, 1)), np.random.default_rng(0)))
    return Op(
        name=name,
        ref=getattr(ref, f"{name}_ref"),
        forms={name: getattr(filters, name)},
        required=("logits", *names),
        outputs=("logits",),
        cases=CASES,
        draw=draw,
        styles={style: styled(LOGITS[style]) for style in styles},
        exact=exact,
        laws=(Law("the vocabulary has no order", reordered, exact=True), *laws),
        batched=("logits", *names),
        wide=tuple(one for one in names if one not in ("k", "seen", "counts")),
    )


SHIFT = Law("only differences matter", shifted, exact=True)
ALL = tuple(LOGITS)

OPS = (
    filter_op("scale_temperature", temperatures, ("forbidden", "huge")),
    filter_op("keep_top_k", counts_to_keep, ALL, SHIFT),
    filter_op("keep_top_p", masses_to_keep, ALL, SHIFT),
    filter_op("keep_min_p", shares_to_keep, ALL, SHIFT),
    filter_op("penalise_repetition", repetitions, ("signed zeros", "forbidden", "huge")),
    filter_op("penalise_counts", occurrences, ("signed zeros", "forbidden", "huge")),
    *DRAWING,
)

__all__ = ["OPS", "SAMPLERS"]
