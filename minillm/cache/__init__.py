"""What attention remembers: one file a kind of memory, all behind the same three methods.

    memory = memory.append(k, v, at)      propose the span's keys and values, written past the committed length
    y, lse = memory.attend(q, at)         attention of the span's queries over everything they may see
    memory = memory.commit(at, keep, n_keep)   keep n_keep tokens, those at indices `keep` of the span

How a memory lays out its rows is its secret. Nothing is masked by multiplying: memory that was never written
may hold NaN. `StateSpec` says how much of it there is.
"""

from dataclasses import dataclass
from typing import Literal

from .contiguous import Contiguous
from .paged import Paged
from .transient import Transient

__all__ = ["Contiguous", "Paged", "StateSpec", "Transient", "new_cache"]


@dataclass(frozen=True)
class StateSpec:
    """How much a model's memory holds.

    slots      how many sequences are remembered at once
    max_len    tokens a sequence, drafts included
    kind       how attention stores them
    dtype      of keys, values and recurrent states
    page_size  rows a page (paged only)
    n_pages    pages a layer, shared by all sequences (paged only)
    """

    slots: int
    max_len: int
    kind: Literal["contiguous", "paged"] = "contiguous"
    dtype: str = "float32"
    page_size: int = 0
    n_pages: int = 0


def new_cache(spec: StateSpec, g: int, k: int) -> Contiguous | Paged:
    """An empty memory for g KV heads of k channels."""
    if spec.kind == "paged":
        return Paged.empty(spec.n_pages, spec.page_size, g, k, spec.dtype)
    return Contiguous.empty(spec.slots, spec.max_len, g, k, spec.dtype)
