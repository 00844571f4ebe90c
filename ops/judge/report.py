"""What the judge found, for a person, a pytest and a machine."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .kernel import Kernel


@dataclass(frozen=True)
class Failure:
    """The smallest trial found that fails, what is wrong with it, and the line that repeats it."""

    trial: str
    fault: str
    reproduce: str
    also: tuple[str, ...] = ()  # other trials that failed with the same words


@dataclass
class Report:
    """The verdict on one kernel in one dtype. `ok` needs at least one trial that ran and none that failed."""

    op: str
    kernel: str
    dtype: str
    signature: str = ""  # what a kernel of the op is given
    recipe: str = ""  # what decides between roundings
    ran: Counter[str] = field(default_factory=Counter)  # trials by check
    failures: list[Failure] = field(default_factory=list)
    uncovered: dict[str, str] = field(default_factory=dict)  # case -> what the kernel does not take
    unused: list[str] = field(default_factory=list)  # laws no case of which the kernel covers
    left_out: int = 0  # trials there was no time for
    interrupted: bool = False  # by the user, so what was not tried is not known
    worst: dict[str, float] = field(default_factory=dict)  # metric -> largest ratio
    conventions: dict[str, dict[str, int]] = field(default_factory=dict)  # "failed" "of" trials on ordinary inputs
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether the kernel may be trusted on what it covers."""
        return bool(self.ran) and not self.failures and not self.interrupted

    @property
    def verdict(self) -> str:
        """In a word."""
        if self.failures:
            return "FAILED"
        return "INTERRUPTED" if self.interrupted else "ok" if self.ran else "NOTHING JUDGED"

    def assert_ok(self) -> None:
        """AssertionError with the whole report unless `ok`."""
        assert self.ok, str(self)

    def to_json(self) -> str:
        """One JSON object; a ratio that is infinite is null."""
        worst = {name: ratio if math.isfinite(ratio) else None for name, ratio in self.worst.items()}
        failures = [asdict(failure) for failure in self.failures]
        return json.dumps({"ok": self.ok, **vars(self), "worst": worst, "failures": failures}, indent=2)

    def repeating(self, trial: object, kernel: Kernel) -> str:
        """The line that runs one trial again."""
        options = f'dtype="{self.dtype}", arrays="{kernel.arrays}"'
        options += f", supports={kernel.supports}" if kernel.supports else ""
        name = self.kernel if self.kernel.isidentifier() else "kernel"  # as a lambda's is not
        return f'ops.validate("{self.op}", {name}, {options}, only="{trial}")'

    def add(self, failure: Failure) -> None:
        """Note a failure; one that is told in the same words as an earlier one is merged with it."""
        self.failures = merged([*self.failures, failure])

    def note(self, ratios: Mapping[str, float] | None, conventions: Mapping[str, bool] | None) -> None:
        """Keep the worst ratio by metric, and how often each convention would have failed the kernel."""
        for name, ratio in (ratios or {}).items():
            self.worst[name] = max(self.worst.get(name, 0.0), ratio)
        for name, passed in (conventions or {}).items():
            counts = self.conventions.setdefault(name, {"failed": 0, "of": 0})
            counts["failed"] += not passed
            counts["of"] += 1

    def __str__(self) -> str:
        lines = [f"{self.kernel}: {self.op} in {self.dtype}: {self.verdict}"]
        ran = [f"{n} {check}" for check, n in self.ran.items() if not check.startswith("law ")]
        laws = [n for check, n in self.ran.items() if check.startswith("law ")]
        ran += [f"{sum(laws)} for {counted(len(laws), 'law')}"] if laws else []
        lines += [f"  {counted(sum(self.ran.values()), 'trial')}: {', '.join(ran)}"] if ran else []
        if self.worst:
            ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in self.worst.items())
            lines += [f"  errors over the naive form's, at worst: {ratios} (allowed: 2)"]
        if self.conventions:
            verdicts = [
                f"{name} fails {n['failed']} of {n['of']}" if n["failed"] else f"{name} passes"
                for name, n in self.conventions.items()
            ]
            lines += [f"  other conventions (they decide nothing): {', '.join(verdicts)}"]
        for case, found in self.details.items():
            lines += [f"  {case}: {found['draws']:,} draws, finds an error of w = {found['detectable_w']:.3f}"]
        for failure in self.failures:
            lines += [f"  FAILED {failure.trial}", f"    {failure.fault}", f"    {failure.reproduce}"]
            checks = [trial.partition("; ")[0] for trial in failure.also]
            lines += [f"    the same fault in: {'; '.join(checks)}"] if checks else []
        if self.failures and self.recipe:
            lines += [f"  held to: {' '.join(self.recipe.split())}"]
        for reason, cases in grouped(self.uncovered).items():
            lines += [f"  not covered, {reason}: {'; '.join(cases)}"]
        if self.unused:
            lines += [f"  laws that no covered case could use: {'; '.join(self.unused)}"]
        if self.left_out:
            lines += [f"  {counted(self.left_out, 'trial')} left out for lack of time"]
        if self.interrupted:
            lines += ["  interrupted: this is what was found until then"]
        elif not self.ran:
            lines += ["  nothing was run: the kernel covers no case", f"  what it would be given: {self.signature}"]
        return "\n".join(lines)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while a kernel was judged; `report` holds what was found until then."""

    def __init__(self, report: Report):
        super().__init__()
        self.report = report


def merged(failures: Iterable[Failure]) -> list[Failure]:
    """One failure for each fault, the first; it names the trials of the others."""
    by_fault: dict[str, Failure] = {}
    for one in failures:
        first = by_fault.get(one.fault)
        by_fault[one.fault] = replace(first, also=(*first.also, one.trial, *one.also)) if first else one
    return list(by_fault.values())


def counted(n: int, thing: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{n} {thing}{'' if n == 1 else 's'}"


def grouped(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """Cases by reason."""
    groups: dict[str, list[str]] = {}
    for case, reason in reasons.items():
        groups.setdefault(reason, []).append(case)
    return groups
