"""What blocks remember, one file a kind of memory. Those of attention all stand behind the same three methods:

    memory = memory.append(k, v, at)           propose the span's keys and values, past the committed length
    y, lse = memory.attend(q, at)              attention of the span's queries over everything they may see
    memory = memory.commit(at, keep, n_keep)   keep n_keep tokens, those at indices `keep` of the span

How a memory lays out its rows is its secret; `rows.py` reads them a block at a time. A recurrent block's state
has no rows; it goes through `run` and `commit` of `recurrent.py`. Nothing is masked by multiplying: memory that
was never written may hold NaN. `StateSpec` says how much of it there is.
"""

import importlib
from dataclasses import replace
from typing import Any, Protocol

import jax

from ..span import Span
from .spec import StateSpec
from .transient import Transient

__all__ = ["Cache", "StateSpec", "Transient", "new_cache"]


class Cache(Protocol):
    """A memory of keys and values; shapes are those of `ops.naive_attention`."""

    def append(self, k: jax.Array, v: jax.Array, at: Span) -> "Cache": ...
    def attend(self, q: jax.Array, at: Span, **options: Any) -> tuple[jax.Array, jax.Array]: ...
    def commit(self, at: Span, keep: jax.Array, n_keep: jax.Array) -> "Cache": ...


def new_cache(spec: StateSpec, g: int, k: int, window: int | None = None, j: int | None = None) -> Cache:
    """An empty memory for g KV heads of k channels: the class of module `spec.kind` that bears its name.

    Values have j channels, k by default. Where no query looks back further than `window` tokens, the plain cache
    gives way to a ring of that length.
    """
    kind = spec.kind
    if kind == "contiguous" and window is not None:
        kind, spec = "ring", replace(spec, max_len=min(window, spec.max_len))
    module = importlib.import_module(f".{kind}", __name__)
    return getattr(module, kind.capitalize()).empty(spec, g, k, k if j is None else j)
