"""Blocks: what a model is a tuple of. Norm and residual are inside, memory and positions come from outside.

A block reads its memory, computes, and proposes what to remember; once the caller knows which tokens stay, it
commits. So one forward serves training, scoring, prefill, decode and the verification of drafts.

Each kind of block comes with its description, a frozen `…Spec`: sizes and choices, from which `build` makes the
block. A `Config` is little more than the descriptions of all layers.
"""

from typing import Any, Protocol

import jax

from ..cache import StateSpec
from ..span import Span
from .attention import Attention, AttentionSpec
from .gated_delta import GatedDeltaNet, GatedDeltaSpec
from .mamba import Mamba, MambaSpec
from .mamba2 import Mamba2, Mamba2Spec
from .mla import LatentAttention, LatentAttentionSpec
from .mlp import MLP, MLPSpec
from .moe import MoE, MoESpec
from .params import Params

__all__ = [
    "MLP",
    "Attention",
    "AttentionSpec",
    "Block",
    "BlockSpec",
    "GatedDeltaNet",
    "GatedDeltaSpec",
    "LatentAttention",
    "LatentAttentionSpec",
    "MLPSpec",
    "Mamba",
    "Mamba2",
    "Mamba2Spec",
    "MambaSpec",
    "MoE",
    "MoESpec",
    "Params",
]


class Block(Protocol):
    """The protocol; `minillm.laws` states what it means and tests any implementation.

    init_state   an empty memory; () for a block that has none
    __call__     x [b, t, d] -> (x [b, t, d], pending); state None means a whole sequence at once, nothing kept
    commit       pending -> state that has seen n_keep [b] of the span's tokens, those at indices keep [b, m]. Of a
                 chain those are the first n_keep; fewer than n need a span with `rewind`, or else all of it stays
    """

    def init_state(self, spec: StateSpec) -> Any: ...
    def __call__(self, x: jax.Array, state: Any, at: Span) -> tuple[jax.Array, Any]: ...
    def commit(self, pending: Any, at: Span, keep: jax.Array, n_keep: jax.Array) -> Any: ...


class BlockSpec(Protocol):
    """The description of a block: hashable, and able to build it from parameters it asks for by name."""

    def build(self, params: Params) -> Block: ...
