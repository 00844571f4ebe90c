"""How much memory a model is given."""

from dataclasses import dataclass
from typing import Literal


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
