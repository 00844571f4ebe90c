"""How much memory a model is given."""

from dataclasses import dataclass, replace
from typing import Literal

import jax.numpy as jnp
import numpy as np

from ..config import check_words
from ..errors import UserError

Kind = Literal["contiguous", "paged", "sinks", "h2o", "kivi"]
CODES = ("int8", "fp8")  # eight bits and a scale for each token and head
N_SINKS = 4  # first tokens that a `sinks` memory keeps, as in the paper
LEAST = N_SINKS + 16  # tokens of a memory that forgets: no draft may reach back behind it
RESIDUAL = 32  # newest tokens, at least, that a `kivi` memory keeps as they are


@dataclass(frozen=True)
class StateSpec:
    """How much a model's memory holds.

    slots      how many sequences are remembered at once
    max_len    tokens a sequence, drafts included: start + n of no span may be more
    kind       how attention stores them
    dtype      of keys and values, floating-point, int8 or fp8; recurrent states are float32 or wider
    page_size  rows a page (paged only)
    n_pages    pages a layer, shared by all sequences (paged only)
    budget     tokens that are kept of a sequence (sinks and h2o only)
    bits       of a number in older tokens, 2 or 4 (kivi only)
    """

    slots: int
    max_len: int
    kind: Kind = "contiguous"
    dtype: str = "float32"
    page_size: int = 0
    n_pages: int = 0
    budget: int = 0
    bits: int = 0

    def __post_init__(self):
        check_words(self)
        if not self.coded and not jnp.issubdtype(self.dtype, jnp.floating):
            raise ValueError(f"StateSpec: dtype is {self.dtype}, expected int8, fp8 or a floating-point one")
        if self.bits not in ((2, 4) if self.kind == "kivi" else (0,)):
            raise ValueError(f"StateSpec: bits is {self.bits}, expected 2 or 4 for kivi, and 0 for other kinds")
        least = {"slots": 1, "max_len": 1}
        least |= {"page_size": 1, "n_pages": 1} if self.kind == "paged" else {}
        least |= {"budget": LEAST} if self.forgets else {}
        for name, size in least.items():
            if getattr(self, name) < size:
                raise ValueError(f"StateSpec: {name} is {getattr(self, name)}, expected {size} or more")
        if self.coded and self.kind not in ("contiguous", "paged"):
            raise ValueError(f"StateSpec: dtype is {self.dtype}, which a {self.kind} memory cannot hold")

    @property
    def forgets(self) -> bool:
        """Whether it keeps some tokens only."""
        return self.kind in ("sinks", "h2o")

    @property
    def coded(self) -> bool:
        """Whether each token is remembered in codes of its own."""
        return self.dtype in CODES

    @property
    def alters(self) -> bool:
        """Whether what is read from it is not what was written."""
        return self.forgets or self.coded or self.kind == "kivi"

    @property
    def unaltered(self) -> int:
        """How many of the newest tokens an altering memory has as they were."""
        return RESIDUAL if self.kind == "kivi" else self.budget

    @property
    def state_dtype(self) -> np.dtype:
        """The dtype of recurrent states, which are sums over the whole text."""
        return np.promote_types(np.float32 if self.coded else self.dtype, np.float32)

    def for_at_most(self, tokens: int) -> "StateSpec":
        """The same for texts of no more tokens: it need not keep more than they have."""
        return replace(self, budget=min(self.budget, max(tokens, LEAST))) if self.forgets else self

    def with_length(self, max_len: int) -> "StateSpec":
        """The same for sequences of so many tokens."""
        return replace(self, max_len=max_len)


PLAIN = StateSpec(slots=1, max_len=1)


def spec_named(name: str) -> StateSpec:
    """What a user calls a kind of memory: int8, fp8, kivi4, kivi2, sinks:TOKENS or h2o:TOKENS.

    slots and max_len are left at 1. UserError if it is none of them.
    """
    kind, _, size = name.partition(":") if isinstance(name, str) else ("", "", "")
    if name in CODES:
        return StateSpec(1, 1, dtype=name)
    if name in ("kivi4", "kivi2"):
        return StateSpec(1, 1, "kivi", bits=int(name[-1]))
    if kind in ("sinks", "h2o") and size.isdecimal() and len(size) < 10 and int(size) >= LEAST:
        return StateSpec(1, 1, kind, budget=int(size))
    known = f"int8, fp8, kivi4, kivi2, sinks:TOKENS or h2o:TOKENS, with {LEAST} tokens or more"
    raise UserError(f"cache is {name!r}, expected {known}")
