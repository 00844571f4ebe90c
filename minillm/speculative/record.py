"""What speculation did, round by round, and what that comes to."""

from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple


class Round(NamedTuple):
    """One round: how deep the draft was (0: none), how many tokens it gave, and the time for both of its halves.

    Timed is false where a program was compiled.
    """

    depth: int
    new: int
    draft_seconds: float
    verify_seconds: float
    timed: bool


@dataclass
class Record:
    """All rounds, and the speed-up that the last rates and costs promise."""

    rounds: list[Round] = field(default_factory=list)
    predicted: float | None = None

    def summary(self) -> dict[str, Any]:
        """The figures users see; times are in milliseconds, and None stands where nothing was measured.

        kept_by_place says how often the j-th token of a draft stayed, of the times that those before it did;
        measured_speed_up compares the time of a token in passes over drafts with that of the median plain step.
        """
        passes = [one for one in self.rounds if one.depth]
        steps = [one.verify_seconds for one in self.rounds if not one.depth and one.timed]
        timed = [one for one in passes if one.timed]
        seconds = sum(one.draft_seconds + one.verify_seconds for one in timed)
        step, tokens = median(steps) if steps else None, sum(one.new for one in timed)
        places = range(max((one.depth for one in passes), default=0))
        reached = [[one.new - 1 > place for one in passes if min(one.depth, one.new) > place] for place in places]
        return {
            "draft_passes": len(passes),
            "plain_steps": len(self.rounds) - len(passes),
            "tokens_per_pass": sum(one.new for one in passes) / len(passes) if passes else None,
            "kept_by_place": [sum(kept) / len(kept) for kept in reached if kept],
            "plain_ms": 1e3 * step if step else None,
            "draft_ms": 1e3 * sum(one.draft_seconds for one in timed) / len(timed) if timed else None,
            "verify_ms": 1e3 * sum(one.verify_seconds for one in timed) / len(timed) if timed else None,
            "predicted_speed_up": self.predicted,
            "measured_speed_up": step * tokens / seconds if step and tokens else None,
        }
