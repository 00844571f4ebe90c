"""What an op says about itself, as data: tests, benches, the judge and outside kernel authors all read it.

Every op has a `cases.py` with one or more `Op`s: the definition, the forms, the shapes and options on which all
of them are tried, how to draw inputs (ordinary, nasty, and such that the answer is exact), and which laws hold.
Adding a case is one line in `cases`; adding a nasty kind of input or a law is one small function.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
Call = Callable[..., tuple[np.ndarray, ...]]  # call(**arrays, **options) -> the kernel's outputs, in float64


@dataclass(frozen=True, eq=False)
class Case:
    """One combination of sizes and options. Any other positive sizes must be legal too: failures are shrunk."""

    name: str
    sizes: Mapping[str, int]  # by the glossary's letters, independent of each other (g and r rather than g and h)
    options: Mapping[str, Any] = field(default_factory=dict)  # keywords that are no arrays: window=4, causal=False
    inputs: tuple[str, ...] = ()  # which optional arrays are drawn: "mask", "state"


@dataclass(frozen=True, eq=False)
class Law:
    """Two ways to the same result: `sides(call, arrays, options, rng)` gives both, or None if the case has no use.

    `exact` demands equal bits; otherwise the two may differ as far as two correct results may.
    """

    name: str
    sides: Callable[[Call, Arrays, Mapping[str, Any], np.random.Generator], tuple[tuple, tuple] | None]
    exact: bool = False


@dataclass(frozen=True, eq=False)
class Op:
    """An op: `ref(*required, **optional, **options)`, and every form and kernel alike.

    `draw(case, rng)` gives float64, int32 and bool arrays by argument name; floats are then rounded to the dtype
    under test, and the definition sees the rounded values. A style changes drawn arrays into nasty ones. `exact`
    draws inputs whose answer is exactly representable (where it is not, the judge does not look; None: nowhere).
    """

    name: str
    ref: Callable
    forms: Mapping[str, Callable]  # the first is the yardstick for rounding errors
    required: tuple[str, ...]  # arrays passed by position, in this order; the others go by keyword
    outputs: tuple[str, ...]  # names of what is returned, in order
    cases: tuple[Case, ...]
    draw: Callable[[Case, np.random.Generator], Arrays]
    styles: Mapping[str, Callable[[Arrays, Case, np.random.Generator], Arrays]] = field(default_factory=dict)
    exact: Callable[[Case, np.random.Generator], Arrays | None] | None = None
    laws: tuple[Law, ...] = ()
    batched: tuple[str, ...] = ()  # arrays whose first axis is b: rows that must not know of each other
    wide: tuple[str, ...] = ()  # float arrays that stay float32 when the rest is narrower (a state, decay rates)
    recipe: str = ""  # what decides between roundings that would all be sensible, where results are held to one


@dataclass(frozen=True, eq=False)
class DistributionOp:
    """An op that draws: judged by how often which outcome comes, against the exact distribution.

    `sample(call, arrays, seed, count)` asks the kernel for `count` outcomes, numbered from 0 as in
    `probabilities(arrays)`, float64; `required` are the arrays a kernel takes by position.
    """

    name: str
    forms: Mapping[str, Callable]
    required: tuple[str, ...]
    cases: tuple[Case, ...]
    draw: Callable[[Case, np.random.Generator], Arrays]
    sample: Callable[[Call, Arrays, int, int], np.ndarray]
    probabilities: Callable[[Arrays], np.ndarray]
    recipe: str = ""
