"""Self-attention with grouped queries, pre-norm, residual inside; Llama's form, and the variations in use."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct

from ..cache import StateSpec, Transient, new_cache
from ..config import check_words
from ..rope import Rope
from ..span import Span
from .params import Linear, Norm, Params, zeros


@dataclass(frozen=True)
class AttentionSpec:
    """h query heads share g KV heads of k channels; everything after `rope` is off in Llama.

    rope       frequencies of the rotary positions; None: this layer knows only order
    bias       what adds one: the queries, keys and values, or the output as well
    qk_norm    RMSNorm of queries and keys before they are turned: of each head, or over all heads
    window     how many tokens a query sees, itself included; None: all
    softcap    score -> softcap * tanh(score / softcap)
    scale      of scores, 1/sqrt(k) by default
    sinks      each head has a learned score that takes its share and gives nothing
    gated      y * sigmoid(gate) before the output
    post_norm  a norm of the output before it is added
    """

    h: int
    g: int
    k: int
    rope: Rope | None
    bias: Literal["", "qkv", "all"] = ""
    qk_norm: Literal["", "head", "all"] = ""
    window: int | None = None
    softcap: float | None = None
    scale: float | None = None
    sinks: bool = False
    gated: bool = False
    post_norm: bool = False

    def __post_init__(self):
        check_words(self)
        if self.h % self.g:
            raise ValueError(f"AttentionSpec: h is {self.h}, expected a multiple of g = {self.g}")
        if self.window is not None and self.window < 1:
            raise ValueError(f"AttentionSpec: window is {self.window}, expected 1 or more, or None")

    def build(self, params: Params) -> "Attention":
        """The block, its parameters asked for by name."""
        p, d, h, g, k = params.under("attention"), params.config.d, self.h, self.g, self.k
        queries = 2 * h * k if self.gated else h * k
        norms = (None, None)
        if self.qk_norm:
            whole = self.qk_norm == "all"
            norms = p.norm("q_norm", h * k if whole else k), p.norm("k_norm", g * k if whole else k)
        return Attention(
            p.norm("norm"),
            p.linear("qkv", d, queries, g * k, g * k, bias=self.bias != ""),
            p.linear("out", h * k, d, bias=self.bias == "all"),
            *norms,
            p.array("sinks", (h,), init=zeros) if self.sinks else None,
            p.norm("post_norm") if self.post_norm else None,
            self,
        )


@struct.dataclass
class Attention:
    """x + attend(rope(norm(x) @ qkv)) @ out.

    qkv (d, (h + 2g) k), columns in the order queries (then their gates), keys, values; out (h k, d). Queries and
    keys are turned in the half-split layout; archs/ reorders the rows of checkpoints that use the other one.
    """

    norm: Norm
    qkv: Linear
    out: Linear
    q_norm: Any
    k_norm: Any
    sinks: jax.Array | None
    post_norm: Any
    spec: AttentionSpec = struct.field(pytree_node=False)

    def init_state(self, spec: StateSpec):
        return new_cache(spec, self.spec.g, self.spec.k, self.spec.window, rope=self.spec.rope)

    @jax.jit  # traced once for all layers of a model, then inlined by XLA
    def __call__(self, x: jax.Array, state, at: Span):
        (b, t, _), s = x.shape, self.spec
        qkv = (self.norm(x) @ self.qkv).reshape(b, t, -1, s.k)
        first_key = (2 if s.gated else 1) * s.h
        q, gate, k, v = jnp.split(qkv, (s.h, first_key, first_key + s.g), axis=2)
        if s.qk_norm:
            q, k = by_head(self.q_norm, q), by_head(self.k_norm, k)
        if s.rope:
            q, k = s.rope.turn(q, at.pos), s.rope.turn(k, at.pos)
        memory = Transient(k, v) if state is None else state.append(k, v, at)
        y, memory = memory.attend(q, at, window=s.window, softcap=s.softcap, scale=s.scale, sinks=self.sinks)
        if s.gated:
            y = y * jax.nn.sigmoid(gate)
        y = y.reshape(b, t, -1) @ self.out
        return x + (self.post_norm(y) if s.post_norm else y), None if state is None else memory

    def commit(self, pending, at: Span, keep: jax.Array, n_keep: jax.Array):
        return pending.commit(at, keep, n_keep)


def by_head(norm: Any, x: jax.Array) -> jax.Array:
    """Norm of x [b t h k] over as many channels as its weight has: one head's, or all heads'."""
    return norm(x.reshape(*x.shape[:2], -1, len(norm.weight))).reshape(x.shape)
