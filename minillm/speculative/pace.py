"""Pace: how many tokens to draft, from what drafting was seen to gain and to cost.

A round that drafts m tokens gives 1 + a_1 + a_1 a_2 + … tokens on average, where a_j says how often the j-th
stays once those before it did (Leviathan et al. 2022, arXiv:2211.17192, equation 1, with a rate for each
place), and costs what it was measured to cost. The best ratio wins, and drafting nothing is one of the choices:
where speculation does not pay it is switched off, but for a try now and then.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

LENGTHS = (0, 3, 7, 15)  # drafted tokens a round; each is a program of its own
FADES = 0.9  # what an older round counts for beside the one after it
PRIOR = (2.0, 2.5)  # kept, tried: what is believed of a place at first, so that longer drafts get a chance
FIRST_REST, LONGEST_REST = 16, 256  # rounds without a draft, before the next try
COLD = (
    4  # rounds of a length whose costs are not averaged: a program's first runs are slow, the best of them counts
)


@dataclass
class Rate:
    """How often something came true, the last times counting most."""

    kept: float = PRIOR[0]
    tried: float = PRIOR[1]

    def observe(self, true: bool) -> None:
        """Count one more."""
        self.kept, self.tried = FADES * self.kept + true, FADES * self.tried + 1

    @property
    def value(self) -> float:
        """Between 0 and 1."""
        return self.kept / self.tried


class Cost(NamedTuple):
    """Seconds of a round's two halves."""

    draft: float
    verify: float


@dataclass
class Pace:
    """Chooses the draft length of each round. most: no more than that; fixed: always `most`, whatever it costs."""

    most: int = LENGTHS[-1]
    fixed: bool = False
    rates: list[Rate] = field(default_factory=list)
    costs: dict[int, Cost] = field(default_factory=dict)  # by draft length
    measured: dict[int, int] = field(default_factory=dict)  # how often
    resting: int = 0
    rest: int = FIRST_REST

    def __post_init__(self):
        self.rates = [Rate() for _ in range(self.most)]

    @property
    def lengths(self) -> tuple[int, ...]:
        """The draft lengths to choose from."""
        return (self.most,) if self.fixed else (*(m for m in LENGTHS if m < self.most), self.most)

    def width(self, length: int) -> int:
        """The least of the draft lengths that is enough for `length` tokens."""
        return next(one for one in self.lengths if one >= length)

    def choose(self, room: int) -> int:
        """How many tokens to draft in the next round, `room` at most; 0 is a plain step."""
        if self.fixed:
            return min(self.most, room)
        if self.measured.get(0, 0) < COLD or self.resting:
            self.resting = max(self.resting - 1, 0)
            return 0
        drafts = self.lengths[1:] if len(self.costs) > 1 else self.lengths[1:2]  # the first try is a short one
        best = max(drafts, key=self.speed)
        if self.speed(best) > self.speed(0):
            self.rest = FIRST_REST
        elif len(self.costs) > 1:  # one more try, to see whether that is still so, then a rest
            self.resting, self.rest = self.rest, min(2 * self.rest, LONGEST_REST)
        return min(best, room)

    def observe(self, length: int, kept: int, cost: Cost | None) -> None:
        """A round of so many drafted tokens kept so many and took so long (None: not measured).

        A draft that was shorter than asked for counts as one that failed there.
        """
        for place, rate in enumerate(self.rates[: min(kept + 1, length)]):
            rate.observe(place < kept)
        if cost is None:
            return
        before, times = self.costs.get(length, cost), self.measured.get(length, 0)
        self.measured[length] = times + 1
        if times < COLD:
            self.costs[length] = min(before, cost, key=sum)
        else:
            halves = zip(before, cost, strict=True)
            self.costs[length] = Cost(*(old + 0.3 * (min(new, 2 * old) - old) for old, new in halves))  # no hiccups

    def tokens(self, length: int) -> float:
        """How many a round is expected to give."""
        total, chance = 1.0, 1.0
        for rate in self.rates[:length]:
            chance *= rate.value
            total += chance
        return total

    def speed(self, length: int) -> float:
        """Tokens a second, measured or expected."""
        return self.tokens(length) / sum(self.costs.get(length) or self.expected(length))

    def expected(self, length: int) -> Cost:
        """The cost of a length never tried, from the longest that was: more drafting, hardly more verifying."""
        known = max(self.costs)
        draft, verify = self.costs[known]
        return Cost(draft * length / max(known, 1), 1.1 * verify)

    @property
    def speed_up(self) -> float | None:
        """What drafting promises over not drafting; None before both were measured."""
        if 0 not in self.costs or len(self.costs) == 1:
            return None
        return max(self.speed(length) for length in self.costs) / self.speed(0)
