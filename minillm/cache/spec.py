"""How much memory a model is given."""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp

from ..config import check_words

Kind = Literal["contiguous", "paged"]


@dataclass(frozen=True)
class StateSpec:
    """How much a model's memory holds.

    slots      how many sequences are remembered at once
    max_len    tokens a sequence, drafts included: start + n of no span may be more
    kind       how attention stores them
    dtype      of keys and values; recurrent states are float32 or wider
    page_size  rows a page (paged only)
    n_pages    pages a layer, shared by all sequences (paged only)
    """

    slots: int
    max_len: int
    kind: Kind = "contiguous"
    dtype: str = "float32"
    page_size: int = 0
    n_pages: int = 0

    def __post_init__(self):
        check_words(self)
        if not jnp.issubdtype(self.dtype, jnp.floating):
            raise ValueError(f"StateSpec: dtype is {self.dtype}, expected a floating-point one")
        sizes = ("slots", "max_len") + (("page_size", "n_pages") if self.kind == "paged" else ())
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"StateSpec: {name} is {getattr(self, name)}, expected 1 or more")
