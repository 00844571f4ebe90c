"""Attention sinks (StreamingLLM; Xiao et al. 2023, arXiv:2309.17453): a text without end in a memory that has one.

Kept are the first four tokens and the newest ones. The first tokens hardly say anything, but models have learned
to look at them when there is nothing else to look at: without them a window falls apart as soon as they leave it.

Positions are those in the memory, not those in the text, which would lie beyond all that the model was trained
for: the newest token is never further from the first than the memory is long. Keys are stored as they were turned
in the text, so a query that looks at tokens behind the window is turned back by as much as they have moved up.
(The paper turns keys anew at each step. Here angles grow with the text, and with them their rounding in float32,
2^-24 of the angle: some hundredths of a radian after a million tokens.)
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from ..ops.attention.scores import add_sinks
from ..rope import Rope
from ..span import Span
from .contiguous import Contiguous
from .ring import Ring
from .rows import Rows, attend_part, merged
from .spec import N_SINKS, StateSpec


@struct.dataclass
class Sinks:
    """first: the tokens 0 … N_SINKS - 1; recent: the newest ones, which at the start are the same."""

    first: Contiguous
    recent: Ring
    rope: Rope | None = struct.field(pytree_node=False)

    @staticmethod
    def empty(spec: StateSpec, g: int, k: int, j: int, rope: Rope | None) -> "Sinks":
        """A memory of spec.budget tokens in which nothing is written yet; rope turned the keys."""
        first, recent = (spec.with_length(rows) for rows in (N_SINKS, spec.budget - N_SINKS))
        return Sinks(Contiguous.empty(first, g, k, j), Ring.empty(recent, g, k, j), rope)

    @property
    def window(self) -> int:
        """How many of the newest tokens there are."""
        return self.recent.keys.shape[2]

    def append(self, k: jax.Array, v: jax.Array, at: Span) -> "Sinks":
        """Propose k [b t g k] and v [b t g j], rounded as they will be remembered."""
        return Sinks(self.first, self.recent.append(k, v, at), self.rope)

    def attend(self, q: jax.Array, at: Span, window=None, sinks=None, **options) -> tuple[jax.Array, "Sinks"]:
        """q [b t h k] -> y [b t h j] and the memory; softcap, scale, sinks as in the ops."""
        near = [attend_part(q, part, at, window=self.window, **options) for part in self.recent.parts()]
        first = self.first
        if at.parent is None:  # of a long chain, the end looks back at the beginning
            k, v = self.recent.parts()[1].keys, self.recent.parts()[1].values
            first = first.append(k, v, at)
        budget = self.window + N_SINKS
        moved = jnp.maximum(at.pos - (budget - 1), 0)
        back = q if self.rope is None else self.rope.shift(q, -moved)
        far = attend_part(back, Behind(first, self.window), at, **options)
        y, lse = merged([*near, far])
        return add_sinks(y, lse, sinks)[0].astype(q.dtype), self

    def commit(self, at: Span, keep: jax.Array, n_keep: jax.Array) -> "Sinks":
        """Keep n_keep [b] tokens, those at indices keep [b m] of the span."""
        k, v = self.recent.parts()[1].keys, self.recent.parts()[1].values
        index = jnp.clip(keep, 0, k.shape[1] - 1)[:, :, None, None]
        kept = Span.chain(at.start, n_keep, keep.shape[1], at.slot)
        k, v = (jnp.take_along_axis(x, index, axis=1) for x in (k, v))
        first = self.first.append(k, v, kept)
        return Sinks(first, self.recent.commit(at, keep, n_keep), self.rope)


@struct.dataclass
class Behind:
    """The first tokens, to those that are a window or more behind them."""

    first: Any
    window: int = struct.field(pytree_node=False)

    def n_rows(self, at: Span) -> int:
        """Rows of each sequence."""
        return N_SINKS

    def n_used(self, at: Span) -> int:
        """All."""
        return N_SINKS

    def rows(self, at: Span, first, size: int) -> Rows:
        """Rows first … first + size - 1 of the span's sequences."""
        rows = self.first.rows(at, first, size)
        written = at.start + (at.n if at.parent is None else 0)
        pos = jnp.where(rows.pos < written[:, None], rows.pos, -1)
        return rows._replace(pos=pos, mask=at.pos[:, :, None] - pos[:, None, :] >= self.window)
