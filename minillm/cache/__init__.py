"""What blocks remember, one file a kind of memory. Those of attention all stand behind the same three methods:

    memory = memory.append(k, v, at)           propose the span's keys and values, past the committed length
    y, memory = memory.attend(q, at)           attention of the span's queries over everything they may see
    memory = memory.commit(at, keep, n_keep)   keep n_keep tokens, those at indices `keep` of the span

How a memory lays out its rows is its secret; `rows.py` reads them a block at a time. A recurrent block's state
has no rows; it goes through `run` and `commit` of `recurrent.py`. Nothing is masked by multiplying: memory that
was never written may hold NaN. `StateSpec` says how much of it there is.
"""

import importlib
from dataclasses import replace
from typing import Any, Protocol

import jax

from ..rope import Rope
from ..span import Span
from .spec import StateSpec
from .transient import Transient

__all__ = ["Cache", "StateSpec", "Transient", "new_cache"]

CLASSES = {
    "contiguous": "Contiguous",
    "paged": "Paged",
    "ring": "Ring",
    "sinks": "Sinks",
    "h2o": "H2O",
    "kivi": "Kivi",
}


class Cache(Protocol):
    """A memory of keys and values; shapes are those of `ops.naive_attention`."""

    def append(self, k: jax.Array, v: jax.Array, at: Span) -> "Cache": ...
    def attend(self, q: jax.Array, at: Span, **options: Any) -> tuple[jax.Array, "Cache"]: ...
    def commit(self, at: Span, keep: jax.Array, n_keep: jax.Array) -> "Cache": ...


def new_cache(
    spec: StateSpec, g: int, k: int, window: int | None = None, j: int | None = None, rope: Rope | None = None
) -> Cache:
    """An empty memory for g KV heads of k channels, whose keys were turned by `rope`.

    Values have j channels, k by default. Where no query looks back further than `window` tokens, a ring of that
    length takes the place of a plain memory, and of one that has so many of the newest as they were.
    """
    kind, j = spec.kind, k if j is None else j
    if window is not None and (kind == "contiguous" or window <= spec.unaltered):
        kind, spec = "ring", replace(spec, kind="contiguous", bits=0, max_len=min(window, spec.max_len))
    module = importlib.import_module(f".{kind}", __name__)
    layout = getattr(module, CLASSES[kind])
    if kind == "sinks":
        return layout.empty(spec, g, k, j, rope)
    if spec.coded:
        return importlib.import_module(".coded", __name__).Coded.empty(layout, spec, g, k, j)
    return layout.empty(spec, g, k, j)
