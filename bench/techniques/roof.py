"""What the machine allows at best: the longer of reading all bytes and doing all operations (`bench.roofline`)."""

from typing import Any, NamedTuple

import jax

from minillm.cache import StateSpec
from minillm.config import Config
from minillm.lm import LM

from ..roofline import Work, least_seconds

BRIEF = 128  # tokens in memory, about, where a step is predicted


class Roof(NamedTuple):
    """The limits of a machine, and what of a model counts under them.

    limits      operations a second by kind of numbers, and bytes a second by "bandwidth"
    parameters  of the model, in float32 if nothing else is said
    row_bytes   that a token takes in memory
    """

    limits: dict[str, float]
    parameters: int
    row_bytes: float

    @classmethod
    def over(cls, lm: LM, roofline: dict[str, Any]) -> "Roof":
        """The roof that `bench.roofline` has found, over a model."""
        limits = {name: 1e9 * most for name, most in roofline["peak_gflop_s"].items()}
        limits["bandwidth"] = 1e9 * roofline["bandwidth_gb_s"]
        parameters = sum(leaf.size for leaf in jax.tree.leaves(lm.model))
        return cls(limits, parameters, lm.model.state_bytes(StateSpec(slots=1, max_len=BRIEF)) / BRIEF)

    def step(
        self,
        b: int,
        t: int = 1,
        *,
        share: float = 1.0,
        kind: str = "float32",
        size: float | None = None,
        rows: int = BRIEF,
    ) -> float:
        """The least seconds in which b texts of so many rows take in t tokens each.

        share is that of the parameters which are left; size is the bytes of the weights if not in float32.
        """
        parameters = share * self.parameters
        weights = 4 * parameters if size is None else size
        work = Work(2 * parameters * b * t, weights + b * rows * self.row_bytes, kind)
        return least_seconds(work, self.limits)

    def drafted(self, found: dict[str, Any], b: int = 1) -> float:
        """How many times as fast b texts are if drafts are kept as `bench.speculation` has found for one."""
        passes, steps = found["draft_passes"], found["plain_steps"]
        tokens = passes * found["tokens_per_pass"] + steps
        verify, plain = self.step(b, 1 + len(found["kept_by_place"])), self.step(b)
        return tokens * plain / (passes * verify + steps * plain)

    def attention(self, config: Config, t: int, rows: float, passes: float) -> float:
        """The least seconds in which t queries attend to so many rows, scores going through memory so often."""
        spec = config.layers[0][0]
        pairs = len(config.layers) * t * rows * spec.h
        return least_seconds(Work(4 * pairs * spec.k, 4 * passes * pairs), self.limits)
