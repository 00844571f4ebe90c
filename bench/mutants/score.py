"""What the judge and the conventions of other projects make of one seeded bug, and of correct kernels."""

from collections.abc import Callable
from typing import NamedTuple

from minillm.ops.cases import DistributionOp, Op
from minillm.ops.judge import OPS, compiled, validate
from minillm.ops.judge.kernel import Kernel
from minillm.ops.judge.report import Report
from minillm.ops.judge.trials import Trial, run_trial
from minillm.ops.judge.verdict import outcomes, plan

from .mutant import Mutant, broken

CONVENTIONS = ("flash-attention", "vLLM", "flash-linear-attention", "ggml", "allclose(1e-2)")


def dtypes(op: Op | DistributionOp) -> tuple[str, ...]:
    """What a kernel's author tries, so a bug is caught if it shows in any of them; samplers have one dtype only."""
    return ("float32",) if isinstance(op, DistributionOp) else ("float32", "bfloat16")


class Score(NamedTuple):
    """Who caught a bug: the first trial of ours that failed, if one did, and the conventions that failed it."""

    mutant: Mutant
    caught_by: str | None
    conventions: tuple[str, ...] | None  # None: they have no word on samplers


def score(mutant: Mutant) -> Score:
    """Run one seeded bug through `validate`, and through each convention on the same cases and ordinary inputs."""
    op = OPS[mutant.op]
    kernel = compiled(broken(mutant, op.forms[mutant.form]))
    caught = next((found for dtype in dtypes(op) if (found := first_failure(op, kernel, dtype))), None)
    if isinstance(op, DistributionOp):
        return Score(mutant, caught, None)
    failing = set[str]().union(*(failing_conventions(op, kernel, dtype) for dtype in dtypes(op)))
    return Score(mutant, caught, tuple(name for name in CONVENTIONS if name in failing))


def first_failure(op: Op | DistributionOp, kernel: Callable, dtype: str) -> str | None:
    """The first trial that the kernel fails."""
    if isinstance(op, DistributionOp):
        failures = validate(op, kernel, dtype=dtype).failures
        return failures[0].trial if failures else None
    judged, report = Kernel(kernel), Report(op.name, "", dtype)
    trials = list(plan(op, judged, dtype, 3, report))
    failed = (trial for trial, outcome in outcomes(op, judged, trials, dtype) if outcome and outcome.fault)
    return next((f"{dtype}: {trial}" for trial in failed), None)


def failing_conventions(op: Op, kernel: Callable, dtype: str) -> set[str]:
    """The conventions that fail the kernel on some case; a kernel that crashes or gives NaN fails them all."""
    failing = set[str]()
    for case in op.cases:
        outcome = run_trial(op, Kernel(kernel), Trial("accuracy", case.name), dtype)
        if outcome:
            passed = outcome.conventions or {}
            failing |= {name for name in CONVENTIONS if not passed.get(name)}
        if failing == set(CONVENTIONS):
            break
    return failing


def false_alarms(job: tuple[str, str, str], seeds: int) -> tuple[int, list[str]]:
    """Trials run of a correct form, given as (op, form, dtype), and those that failed though they should not."""
    name, form, dtype = job
    op = OPS[name]
    report = validate(op, compiled(op.forms[form]), dtype=dtype, seeds=seeds, shrink=False)
    return sum(report.ran.values()), [f"{form}, {dtype}: {failure.trial}" for failure in report.failures]
