"""Samplers: does every outcome come as often as it should? Pearson's chi-square against the exact distribution.

    X = sum_o (count_o - N p_o)^2 / (N p_o)        chi-square with (outcomes - 1) degrees of freedom if correct

Outcomes expected fewer than 50 times are pooled. What must never come (p = 0) is not tested but forbidden. A
verdict is wrong about a correct sampler less than once in 10^7 times: the test is at 10^-9, since so far out the
statistic is only roughly a chi-square. The report says how large a deviation w = sqrt(sum_o (q_o - p_o)^2 / p_o) of
a wrong sampler q would be found 99 times in 100.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ..cases import DistributionOp
from .kernel import ORDINARY, Kernel, raised
from .report import Failure, Report

SIGNIFICANCE, POWER_Z = 1e-9, 2.326  # the standard normal's 99 % quantile
DRAWS, QUICK_DRAWS = 50_000, 10_000
LEAST_EXPECTED = 50.0


def judge_distribution(op: DistributionOp, kernel: Kernel, report: Report, draws: int, only: str | None) -> Report:
    """Draw from the kernel on every case, or on the one that `only` names, and compare; fills the report.

    ValueError if `only` names none.
    """
    trials = [f"chi-square; {case.name}; seed {i}" for i, case in enumerate(op.cases)]
    if only not in (None, *trials):
        raise ValueError(f"{op.name} has no trial {only!r}; it has: {', '.join(map(repr, trials))}")
    for i, (case, trial) in enumerate(zip(op.cases, trials, strict=True)):
        if only not in (None, trial):
            continue
        if reason := kernel.uncovered(op, case, report.dtype, ORDINARY):
            report.uncovered[case.name] = reason
            continue
        arrays = op.draw(case, np.random.default_rng(i))
        probabilities = op.probabilities(arrays)

        def call(**given) -> tuple[np.ndarray, ...]:
            named = {name: x for name, x in given.items() if isinstance(x, np.ndarray)}
            return kernel(op, named, {name: x for name, x in given.items() if name not in named})

        report.ran["chi-square"] += 1
        try:
            outcomes = op.sample(call, arrays, i, draws)
            fault = find_fault(np.bincount(outcomes, minlength=len(probabilities)), probabilities, len(op.cases))
        except Exception as error:  # whatever a kernel raises is its verdict, not ours
            fault = raised(error)
        if fault:
            report.add(Failure(trial, fault, report.repeating(trial, kernel)))
        smallest = detectable(probabilities, draws, len(op.cases))
        report.details[case.name] = {"draws": draws, "detectable_w": smallest}
    return report


def find_fault(counts: np.ndarray, probabilities: np.ndarray, verdicts: int) -> str | None:
    """What is wrong with how often each outcome came, if anything; `verdicts` share one significance."""
    if len(counts) > len(probabilities):
        return f"outcome {len(counts) - 1} came, there are {len(probabilities)}"
    if counts[probabilities == 0].any():
        outcome = int(np.argmax(np.where(probabilities == 0, counts, 0)))
        return f"outcome {outcome} has probability 0 and came {counts[outcome]} times"
    expected, seen = pooled(counts.sum() * probabilities, counts)
    statistic, freedom = float(np.sum((seen - expected) ** 2 / expected)), len(expected) - 1
    p = tail(statistic, freedom) if freedom else 1.0
    if p >= SIGNIFICANCE / verdicts:
        return None
    return f"chi-square {statistic:.1f} with {freedom} degrees of freedom has p = {p:.1e} if the sampler is right"


def pooled(expected: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Possible outcomes, the rare ones as one."""
    rare, common = (expected > 0) & (expected < LEAST_EXPECTED), expected >= LEAST_EXPECTED
    if expected[rare].sum() < LEAST_EXPECTED:  # too few even together: with the least common of the others
        least = np.flatnonzero(common)[np.argmin(expected[common])]
        common[least], rare[least] = False, True
    groups = [np.append(x[common], x[rare].sum()) for x in (expected, counts)]
    return groups[0], groups[1]


def tail(statistic: float, freedom: int) -> float:
    """The probability of a chi-square of at least `statistic`."""
    with jax.enable_x64(True):
        return float(jax.scipy.special.gammaincc(jnp.float64(freedom / 2), jnp.float64(statistic / 2)))


def detectable(probabilities: np.ndarray, draws: int, verdicts: int) -> float:
    """The effect size w that is found with probability 0.99, by the normal approximation of both tails.

    A wrong sampler's statistic has mean freedom + N w^2 and variance 2 freedom + 4 N w^2.
    """
    freedom = max(len(pooled(draws * probabilities, np.zeros_like(probabilities))[0]) - 1, 1)
    critical = freedom
    while tail(critical, freedom) > SIGNIFICANCE / verdicts:
        critical *= 1.05
    shift = np.linspace(0, 40 * critical, 20_000)
    found = freedom + shift - POWER_Z * np.sqrt(2 * freedom + 4 * shift) >= critical
    return float(np.sqrt(shift[np.argmax(found)] / draws))
