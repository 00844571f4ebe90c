"""One trial: one check of one case on inputs drawn from one seed. A trial is a line of text, so it can be repeated.

accuracy; window of 5; outlier channel; seed 3                errors in roundings against the naive form's
exact; square causal; seed 0; b=1 t=2                         equal to the bit where the answer is representable
law same call, same bits; decode one query; seed 1            two ways to one result
"""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ..cases import Arrays, Case, Law, Op
from .accuracy import LIMIT, METRICS, Ideal, conventions, errors, expected, find_ideal, ratios, shape_fault
from .kernel import ORDINARY, Kernel, NotCovered, as_tuple, compiled, raised
from .laws import laws_of

REORDERED = "other memory order"  # a style of every op: ordinary inputs, in memory as Fortran has them


class Trial(NamedTuple):
    """What is checked, on which case, on what kind of inputs, from which seed, with which sizes changed."""

    check: str  # "accuracy", "exact", "law NAME"
    case: str
    style: str = ORDINARY
    seed: int = 0
    sizes: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        style = [self.style] if self.style != ORDINARY else []
        sizes = [" ".join(f"{letter}={size}" for letter, size in self.sizes)] if self.sizes else []
        return "; ".join([self.check, self.case, *style, f"seed {self.seed}", *sizes])

    @classmethod
    def parse(cls, line: str) -> "Trial":
        """Read what str() wrote; ValueError says what is wrong with it."""
        try:
            check, case, *rest = (part.strip() for part in line.split(";"))
            place = next(i for i, part in enumerate(rest) if part.startswith("seed "))
            pairs = [pair.split("=") for pair in " ".join(rest[place + 1 :]).split()]
            sizes, seed = tuple((letter, int(size)) for letter, size in pairs), int(rest[place][5:])
            if seed < 0:
                raise ValueError
            return cls(check, case, rest[0] if place else ORDINARY, seed, sizes)
        except (ValueError, StopIteration):
            raise ValueError(f"trial {line!r}: expected 'CHECK; CASE; [STYLE;] seed N[; t=1 …]'") from None


class Outcome(NamedTuple):
    """How a trial went: `fault` says what is wrong; ratios and conventions are those of accuracy trials."""

    fault: str | None
    ratios: Mapping[str, float] | None = None
    conventions: Mapping[str, bool] | None = None
    refused: bool = False  # it raised where it may


def case_of(op: Op, trial: Trial) -> Case:
    """The trial's case with its sizes. ValueError if the op has none of that name, or none of such a size."""
    case = next((case for case in op.cases if case.name == trial.case), None)
    if case is None:
        raise ValueError(f"{op.name} has no case {trial.case!r}; it has: {', '.join(one.name for one in op.cases)}")
    for letter, size in trial.sizes:
        if letter not in case.sizes or size < min(case.sizes[letter], 1):
            raise ValueError(f"{op.name} cannot be asked for {letter} = {size} in case {case.name!r}")
    return replace(case, sizes={**case.sizes, **dict(trial.sizes)})


def law_of(op: Op, trial: Trial) -> Law:
    """The law a trial is about. ValueError if the op has none of that name."""
    for law in laws_of(op):
        if trial.check == f"law {law.name}":
            return law
    raise ValueError(f"{op.name} has no {trial.check}; it has: {', '.join(law.name for law in laws_of(op))}")


@np.errstate(all="ignore")
def run_trial(op: Op, kernel: Kernel, trial: Trial, dtype: str) -> Outcome | None:
    """Run one trial. None if the kernel does not cover it or the law has no use for the case."""
    case = case_of(op, trial)
    if kernel.uncovered(op, case, dtype, trial.style):
        return None
    if trial.check.startswith("law "):
        return judge_law(op, kernel, law_of(op, trial), trial, dtype)
    if trial.check not in ("accuracy", "exact") or (trial.check == "exact" and not op.exact):
        raise ValueError(f"{op.name} has no check {trial.check!r}, expected accuracy, exact or law NAME")
    order = "F" if trial.style == REORDERED else "C"
    try:
        ideal = ideal_of(op, trial._replace(style=ORDINARY) if order == "F" else trial, dtype)
    except NotCovered:
        return None
    try:
        found = kernel(op, drawn(op, trial, dtype), case.options, order)
    except Exception as error:  # whatever a kernel raises is its verdict, not ours
        return Outcome(None, refused=True) if order == "F" else Outcome(raised(error))
    if fault := shape_fault(found, ideal, op.outputs):
        return Outcome(fault)
    return judge_exact(op, found, ideal) if trial.check == "exact" else judge_accuracy(op, found, ideal, dtype)


def judge_accuracy(op: Op, found: tuple, ideal: Ideal, dtype: str) -> Outcome | None:
    """Two-error ratio in every metric."""
    worst = ratios(found, ideal)
    if not worst:
        return None
    bad = [f"{name} {ratio:.3g}" for name, ratio in worst.items() if not ratio <= LIMIT]
    narrow = [
        f"; {name} is {y.dtype}, the naive form's is {naive.dtype}"
        for name, y, naive in zip(op.outputs, found, ideal.naive, strict=False)
        if y.dtype.itemsize < naive.dtype.itemsize
    ]
    fault = None
    if bad:
        fault = f"errors are {', '.join(bad)} times the naive form's, allowed {LIMIT:g}"
        fault = (infinite_fault(op, found, ideal) or fault) + "".join(narrow)
    return Outcome(fault, worst, conventions(found, ideal, dtype))


def infinite_fault(op: Op, found: tuple, ideal: Ideal) -> str | None:
    """The first element that is infinitely wrong (NaN, say), where the naive form's is not."""
    for name, y, exact, naive, rounding in zip(op.outputs, found, *ideal, strict=False):
        wrong = np.isinf(errors(y, exact, rounding)) & np.isfinite(errors(naive, exact, rounding))
        if wrong.any():
            return first_wrong(name, y, "the definition gives", exact, wrong)
    return None


def first_wrong(name: str, y: np.ndarray, rather: str, exact: np.ndarray, wrong: np.ndarray) -> str:
    """`y[0, 1] is nan, the definition gives 0.5; 2 of 8 are wrong`."""
    place = tuple(int(i) for i in np.argwhere(wrong)[0])
    value, many = np.asarray(y, np.float64)[place], f"{wrong.sum()} of {wrong.size} are wrong"
    other = "expected a number" if np.isnan([value, exact[place]]).all() else f"{rather} {exact[place]:.9g}"
    return f"{name}{list(place)} is {value:.9g}, {other}; {many}"


def judge_exact(op: Op, found: tuple, ideal: Ideal) -> Outcome | None:
    """Equality wherever the answer is a value of the output's dtype; None if it is nowhere."""
    compared = 0
    for name, y, exact, naive in zip(op.outputs, found, ideal.outputs, ideal.naive, strict=False):
        representable = exact.astype(naive.dtype).astype(np.float64) == exact
        compared += representable.sum()
        wrong = representable & (np.asarray(y, np.float64) != exact)
        if wrong.any():
            return Outcome(first_wrong(name, y, "the exact answer is", exact, wrong))
    return Outcome(None) if compared else None


def judge_law(op: Op, kernel: Kernel, law: Law, trial: Trial, dtype: str) -> Outcome | None:
    """Both sides of a law, equal in bits or as near as two correct results are."""
    held: list[tuple[np.ndarray, np.ndarray]] = []  # results in the kernel's own memory, and what they were

    def call(**given: Any) -> tuple[np.ndarray, ...]:
        arrays = {name: x for name, x in given.items() if isinstance(x, np.ndarray)}
        options = {name: x for name, x in given.items() if name not in arrays}
        outputs = kernel(op, cast(op, arrays, dtype), options)
        if any(y.tobytes() != before.tobytes() for y, before in held):
            raise ValueError(f"{kernel.name} overwrote the result of an earlier call")
        held.extend((y, y.copy()) for y in outputs)
        return tuple(y.astype(np.float64) for y in outputs)

    case = case_of(op, trial)
    try:
        sides = law.sides(call, drawn(op, trial, dtype), case.options, np.random.default_rng(trial.seed))
    except NotCovered:
        return None
    except Exception as error:
        if law in op.laws and kernel.supports.keys() & case.sizes.keys():
            return None  # an op's laws change sizes, and a kernel that declares its own may refuse others
        return Outcome(raised(error))
    if sides is None:
        return None
    limits = [0.0] * len(sides[0]) if law.exact else list(law_limits(ideal_of(op, trial, dtype)))
    for name, one, other, limit in zip(op.outputs, *sides, limits, strict=False):
        if one.shape != other.shape:
            return Outcome(f"{name} has shape {list(one.shape)} one way and {list(other.shape)} the other")
        differences = errors(one, other, np.ones(one.shape))
        worst = float(np.max(differences, initial=0))
        if np.isinf(worst) and not worst <= limit:
            return Outcome(first_wrong(name, one, "the other way", other, np.isinf(differences)))
        if not worst <= limit:
            return Outcome(f"{name} differs by {worst:.3g}, two correct results by at most {limit:.3g}")
    return Outcome(None)


def law_limits(ideal: Ideal) -> Iterator[float]:
    """For each output how far apart two correct results may lie: each may be LIMIT times the naive form's error."""
    for exact, naive, rounding in zip(ideal.outputs, ideal.naive, ideal.rounding, strict=True):
        yardstick = errors(naive, exact, rounding)
        known = np.isfinite(yardstick)
        allowed = expected(METRICS["max"], yardstick[known]) if known.any() else 0.0
        yield 2 * LIMIT * allowed * float(np.max(rounding, initial=0))


def drawn(op: Op, trial: Trial, dtype: str) -> Arrays:
    """The trial's inputs, floats rounded to `dtype`. NotCovered if it wants an exact answer and there is none."""
    case = case_of(op, trial)
    rng = np.random.default_rng([trial.seed, zlib.crc32(trial.case.encode())])
    if trial.check == "exact" and op.exact:
        if (arrays := op.exact(case, rng)) is None:
            raise NotCovered(f"{op.name}: no exact answer in case {case.name!r} of these sizes")
        return cast(op, arrays, dtype)
    arrays = op.draw(case, rng)
    if trial.style not in (ORDINARY, REORDERED):
        if trial.style not in op.styles:
            raise ValueError(f"{op.name} has no style {trial.style!r}; it has: {', '.join(op.styles)}")
        arrays = op.styles[trial.style](arrays, case, rng)
    return cast(op, arrays, dtype)


@np.errstate(over="ignore")
def cast(op: Op, arrays: Arrays, dtype: str) -> Arrays:
    """Floats to the dtype under test, or to float32 where the op keeps them wide."""
    wide = np.promote_types(jnp.dtype(dtype), np.float32)
    floats = {name: x for name, x in arrays.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    narrow = {name: x.astype(wide if name in op.wide else jnp.dtype(dtype)) for name, x in floats.items()}
    return {**arrays, **narrow}


@lru_cache(maxsize=2048)
def ideal_of(op: Op, trial: Trial, dtype: str) -> Ideal:
    """The ideal for a trial; kept, since every kernel is judged on the same ones."""
    case, arrays = case_of(op, trial), drawn(op, trial, dtype)
    naive = yardstick(op)(op, arrays, case.options)

    def reference(wide: Arrays) -> tuple:
        optional = {name: x for name, x in wide.items() if name not in op.required}
        return as_tuple(op.ref(*(wide[name] for name in op.required), **optional, **case.options))

    return find_ideal(reference, naive, arrays)


@lru_cache(maxsize=64)
def yardstick(op: Op) -> Kernel:
    """The form whose rounding errors are the measure."""
    return Kernel(compiled(next(iter(op.forms.values()))))
