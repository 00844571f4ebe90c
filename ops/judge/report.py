"""What the judge found, for a person, a pytest and a machine."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .kernel import Kernel


@dataclass(frozen=True)
class Failure:
    """The smallest trial found that fails, what is wrong with it, and the line that repeats it."""

    trial: str
    fault: str
    reproduce: str


@dataclass
class Report:
    """The verdict on one kernel in one dtype. `ok` needs at least one trial that ran and none that failed."""

    op: str
    kernel: str
    dtype: str
    ran: Counter[str] = field(default_factory=Counter)  # trials by check
    failures: list[Failure] = field(default_factory=list)
    uncovered: dict[str, str] = field(default_factory=dict)  # case -> what the kernel does not take
    unused: list[str] = field(default_factory=list)  # laws no case of which the kernel covers
    left_out: int = 0  # trials there was no time for
    worst: dict[str, float] = field(default_factory=dict)  # metric -> largest ratio
    conventions: dict[str, bool] = field(default_factory=dict)  # on ordinary inputs
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether the kernel may be trusted on what it covers."""
        return bool(self.ran) and not self.failures

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

    def note(self, ratios: Mapping[str, float] | None, conventions: Mapping[str, bool] | None) -> None:
        """Keep the worst ratio by metric; a convention passes if it does every time."""
        for name, ratio in (ratios or {}).items():
            self.worst[name] = max(self.worst.get(name, 0.0), ratio)
        for name, passed in (conventions or {}).items():
            self.conventions[name] = self.conventions.get(name, True) and passed

    def __str__(self) -> str:
        lines = [f"{self.kernel}: {self.op} in {self.dtype}: {'ok' if self.ok else 'FAILED'}"]
        ran = [f"{n} {check}" for check, n in self.ran.items() if not check.startswith("law ")]
        laws = [n for check, n in self.ran.items() if check.startswith("law ")]
        ran += [f"{sum(laws)} for {len(laws)} laws"] if laws else []
        lines += [f"  {sum(self.ran.values())} trials: {', '.join(ran)}"] if ran else []
        if self.worst:
            ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in self.worst.items())
            lines += [f"  errors over the naive form's, at worst: {ratios} (allowed: 2)"]
        if self.conventions:
            verdicts = [f"{name} {'pass' if passed else 'fail'}" for name, passed in self.conventions.items()]
            lines += [f"  other conventions would say: {', '.join(verdicts)}"]
        for case, found in self.details.items():
            lines += [f"  {case}: {found['draws']:,} draws, finds an error of w = {found['detectable_w']:.3f}"]
        for failure in self.failures:
            lines += [f"  FAILED {failure.trial}", f"    {failure.fault}", f"    {failure.reproduce}"]
        for reason, cases in grouped(self.uncovered).items():
            lines += [f"  not covered, {reason}: {', '.join(cases)}"]
        if self.unused:
            lines += [f"  laws that no covered case could use: {', '.join(self.unused)}"]
        if self.left_out:
            lines += [f"  {self.left_out} trials left out for lack of time"]
        if not self.ran:
            lines += ["  nothing was run: the kernel covers no case"]
        return "\n".join(lines)


def grouped(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """Cases by reason."""
    groups: dict[str, list[str]] = {}
    for case, reason in reasons.items():
        groups.setdefault(reason, []).append(case)
    return groups
