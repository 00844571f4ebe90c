"""The shapes and options on which every attention form is tried: by tests, benches and outside kernels alike."""

from typing import NamedTuple


class Case(NamedTuple):
    """Sizes by letter, and which of the options of `attention_ref` are in play."""

    name: str
    b: int
    t: int
    s: int
    h: int
    g: int
    k: int
    causal: bool = True
    positions: bool = False  # ragged lengths, padding and shuffled rows through q_pos and k_pos
    mask: bool = False


CASES = (
    Case("one token", b=1, t=1, s=1, h=1, g=1, k=8),
    Case("square causal", b=2, t=17, s=17, h=4, g=4, k=16),
    Case("grouped queries", b=2, t=9, s=9, h=6, g=2, k=8),
    Case("multi-query", b=1, t=5, s=12, h=4, g=1, k=16),
    Case("decode one query", b=3, t=1, s=40, h=9, g=3, k=8),
    Case("not causal", b=1, t=7, s=13, h=2, g=1, k=8, causal=False),
    Case("ragged positions", b=3, t=6, s=20, h=4, g=2, k=8, positions=True),
    Case("tree mask", b=2, t=5, s=16, h=4, g=2, k=8, positions=True, mask=True),
)
