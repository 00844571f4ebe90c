"""The verdict: `ops.validate` judges any callable against an op.

Every covered case is tried for accuracy on ordinary and on nasty inputs, for equality on inputs whose answer is
exact, and in the op's laws. Cases that show an option or an input for the first time come first, and large ones
before small ones, so that little time goes far. A check that failed is not run again; in the end each failure is
moved to the op's simplest case that fails, and shrunk by hypothesis to small sizes and a small seed.
"""

import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import hypothesis
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.errors import Flaky, NoSuchExample

from ..cases import Case, DistributionOp, Op
from .distribution import DRAWS, QUICK_DRAWS, judge_distribution
from .kernel import Kernel, Library, Supports, defaults_of, signature_of
from .laws import laws_of
from .report import Failure, Interrupted, Report, merged
from .subjects import find_op
from .trials import ORDINARY, REORDERED, Outcome, Trial, run_trial

LAW_CASES = 4  # on how many cases each law is tried, and memory in another order
QUICK_SECONDS = 5.0  # for all trials
SHRINK_SECONDS, QUICK_SHRINK_SECONDS = 15.0, 3.0  # for all failures together
HANGING_SECONDS = 30.0  # a failure that took so long is the last: what hangs would hang in each check
Progress = Callable[[str, int, int], None]  # is told of what ("trials", "shrinking") how many of how many are done
DTYPES = ("float32", "bfloat16", "float16")


def validate(
    op: str | Op | DistributionOp,
    kernel: Callable,
    *,
    dtype: str = "float32",
    arrays: Library = "jax",
    supports: Supports | None = None,
    seeds: int = 3,
    quick: bool = False,
    only: str | None = None,
    shrink: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Judge `kernel` as the op of that name, or as one of your own -> a `Report`.

    The kernel gets the op's required arrays by position, the rest by keyword, as arrays of the library `arrays`,
    floats in `dtype`. `supports` declares what it can do (see `Kernel`). Ordinary and exact inputs are drawn from
    `seeds` seeds, nasty ones from one. `quick` stops after some eight seconds, `only` repeats one trial of an
    earlier report, `shrink=False` reports failures as they came, and `progress` is called with ("trials" or
    "shrinking", how many are done, how many there are). ValueError for an unknown op, dtype or trial, or for a
    sampler in anything but float32; Ctrl-C raises `Interrupted`, a KeyboardInterrupt with the report so far.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    subject, judged = find_op(op) if isinstance(op, str) else op, Kernel(kernel, arrays, supports)
    check_supports(subject, judged)
    report = Report(subject.name, judged.name, dtype, signature_of(subject), subject.recipe)
    try:
        if isinstance(subject, DistributionOp):
            if dtype != "float32":
                raise ValueError(f"dtype is {dtype!r}, expected 'float32': samplers are judged in no other")
            return judge_distribution(subject, judged, report, QUICK_DRAWS if quick else DRAWS, only)
        trials = list(plan(subject, judged, dtype, seeds, report)) if only is None else [Trial.parse(only)]
        took = run_all(subject, judged, trials, report, QUICK_SECONDS if quick else math.inf, progress)
        report.unused = unused_laws(subject, report) if only is None and not report.left_out else []
        if shrink and only is None:
            seconds = QUICK_SHRINK_SECONDS if quick else SHRINK_SECONDS
            simplify(subject, judged, report, took, seconds, progress)
        return report
    except KeyboardInterrupt:
        report.interrupted = True
        raise Interrupted(report) from None


def check_supports(op: Op | DistributionOp, kernel: Kernel) -> None:
    """ValueError if what a kernel declares speaks of something, or of a word, that no case of the op has."""
    styles = op.styles if isinstance(op, Op) else ()
    known: dict[str, list] = {"dtype": [*DTYPES], "style": [ORDINARY, REORDERED, *styles]}
    for case in op.cases:
        for name, value in (*case.sizes.items(), *defaults_of(op).items(), *case.options.items()):
            known.setdefault(name, []).append(value)
        known |= {name: [True, False] for name in case.inputs}
    for name, allowed in kernel.supports.items():
        if name not in known:
            raise ValueError(f"supports names {name!r}, expected one of: {', '.join(sorted(known))}")
        for value in allowed if isinstance(allowed, list | tuple | set | frozenset) else ():
            if isinstance(value, str | bool) and value not in known[name]:
                words = ", ".join(dict.fromkeys(map(repr, known[name])))
                raise ValueError(f"supports says {name} = {value!r}, expected one of: {words}")


def plan(op: Op, kernel: Kernel, dtype: str, seeds: int, report: Report) -> Iterator[Trial]:
    """All trials in order; what the kernel does not cover goes into the report."""
    cases = []
    for case in by_novelty(op.cases):
        if reason := kernel.uncovered(op, case, dtype, ORDINARY):
            report.uncovered[case.name] = reason
        else:
            cases.append(case)
    every = [*op.styles, REORDERED] if kernel.arrays != "jax" else [*op.styles]  # in JAX memory has no order
    styles = [style for style in every if style in kernel.supports.get("style", every)]
    report.uncovered |= {f"{style} inputs": "style" for style in every if style not in styles}
    for seed in range(seeds):
        for i, case in enumerate(cases):
            yield Trial("accuracy", case.name, seed=seed)
            if op.exact:
                yield Trial("exact", case.name, seed=seed)
            if not seed:
                yield from (
                    Trial("accuracy", case.name, one) for one in styles if one != REORDERED or i < LAW_CASES
                )
                yield from (Trial(f"law {law.name}", case.name) for law in laws_of(op))


def run_all(
    op: Op, kernel: Kernel, trials: list[Trial], report: Report, seconds: float, progress: Progress | None
) -> dict[str, float]:
    """Run trials until time is up or one hangs, all noted in the report -> how long those that failed took."""
    began = now = time.monotonic()
    seconds_taken = {}
    for done, (trial, outcome) in enumerate(outcomes(op, kernel, trials, report.dtype)):
        took, now = time.monotonic() - now, time.monotonic()
        fault = outcome.fault if outcome else None
        if progress:
            progress("trials", done, len(trials))
        if outcome and outcome.refused:
            report.uncovered[f"{trial.style} inputs"] = "refused"
        elif outcome:
            report.ran[trial.check] += 1
            report.note(outcome.ratios, outcome.conventions if trial.style == ORDINARY else None)
        if fault:
            report.add(Failure(str(trial), fault, report.repeating(trial, kernel)))
            seconds_taken[str(trial)] = took
        if now - began > seconds or (fault and took > HANGING_SECONDS):
            report.left_out = len(trials) - done - 1
            break
    return seconds_taken


def outcomes(op: Op, kernel: Kernel, trials: list[Trial], dtype: str) -> Iterator[tuple[Trial, Outcome | None]]:
    """Run trials in order, without those of a check that failed and of laws that were tried often enough."""
    tried, failed = Counter[str](), set[str]()
    for trial in trials:
        enough = trial.check.startswith("law ") and tried[trial.check] >= LAW_CASES
        outcome = None if enough or trial.check in failed else run_trial(op, kernel, trial, dtype)
        if outcome:
            tried[trial.check] += 1
            failed |= {trial.check} if outcome.fault else set()
        yield trial, outcome


def by_novelty(cases: tuple[Case, ...]) -> list[Case]:
    """The cases that show most options and inputs not yet seen first, then the largest: the last ones of an op."""
    left, seen, ordered = list(reversed(cases)), set[str](), []
    while left:
        best = max(left, key=lambda case: len({*case.options, *case.inputs} - seen))
        seen |= {*best.options, *best.inputs}
        ordered.append(best)
        left.remove(best)
    return ordered


def simplify(
    op: Op, kernel: Kernel, report: Report, took: dict[str, float], seconds: float, progress: Progress | None
) -> None:
    """Put simpler trials in place of those in the report that failed, all within some `seconds`.

    Each failure has an equal share of the time that is left; what `took` longer than all of it stays as it is.
    """
    end, count = time.monotonic() + seconds, len(report.failures)
    for i, failure in enumerate(report.failures):
        if progress:
            progress("shrinking", i + 1, count)
        share = (end - time.monotonic()) / (count - i)
        if share <= 0 or took[failure.trial] >= seconds:
            continue
        trial, fault = simplest(op, kernel, Trial.parse(failure.trial), failure.fault, report.dtype, share / 2)
        trial, fault = shrunk(op, kernel, trial, fault, report.dtype, share / 2)
        line = report.repeating(trial, kernel)
        report.failures[i] = replace(failure, trial=str(trial), fault=fault, reproduce=line)
    report.failures = merged(report.failures)


def simplest(op: Op, kernel: Kernel, trial: Trial, fault: str, dtype: str, seconds: float) -> tuple[Trial, str]:
    """The same check on the op's first case that fails it: a table of cases goes from simple to complex."""
    deadline = time.monotonic() + seconds
    for case in op.cases:
        if case.name == trial.case or time.monotonic() > deadline:
            break
        other = trial._replace(case=case.name)
        if found := same_fault(op, kernel, other, fault, dtype):
            return other, found
    return trial, fault


def same_fault(op: Op, kernel: Kernel, trial: Trial, fault: str, dtype: str) -> str | None:
    """The fault of a trial, if it fails in the same way: a kernel that was wrong may refuse what is so small."""
    with suppress(Exception):  # sizes that the op itself cannot be asked for
        outcome = run_trial(op, kernel, trial, dtype)
        found = outcome.fault if outcome else None
        return found if found and found.startswith("raised") == fault.startswith("raised") else None
    return None


def shrunk(op: Op, kernel: Kernel, trial: Trial, fault: str, dtype: str, seconds: float) -> tuple[Trial, str]:
    """The smallest sizes and seed at which the trial still fails, as far as they are found within `seconds`."""
    sizes = dict(next(case for case in op.cases if case.name == trial.case).sizes)
    deadline, failing = time.monotonic() + seconds, [(sum(sizes.values()), trial.seed, trial, fault)]

    def fails(drawn: tuple[dict[str, int], int]) -> bool:
        changed = {letter: size for letter, size in drawn[0].items() if size != sizes[letter]}
        smaller = trial._replace(seed=drawn[1], sizes=tuple(changed.items()))
        if time.monotonic() > deadline:
            return False
        if found := same_fault(op, kernel, smaller, fault, dtype):
            failing.append((sum(drawn[0].values()), drawn[1], smaller, found))
        return bool(found)

    sizes_up_to = st.fixed_dictionaries({name: st.integers(min(size, 1), size) for name, size in sizes.items()})
    settings = hypothesis.settings(max_examples=50, deadline=None, database=None, derandomize=True)
    with home_for_hypothesis(), suppress(NoSuchExample, Flaky):  # if time runs out, what failed until then counts
        hypothesis.find(st.tuples(sizes_up_to, st.integers(0, trial.seed)), fails, settings=settings)
    return min(failing)[2:]


@contextmanager
def home_for_hypothesis() -> Iterator[None]:
    """A folder for the notes that it takes even without a database, or they would be left where the user stands."""
    with tempfile.TemporaryDirectory() as folder:
        set_hypothesis_home_dir(folder)
        try:
            yield
        finally:
            set_hypothesis_home_dir(None)


def unused_laws(op: Op, report: Report) -> list[str]:
    """Laws of which no trial ran."""
    return [law.name for law in laws_of(op) if not report.ran[f"law {law.name}"]]
