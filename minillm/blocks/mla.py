"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1), pre-norm, residual inside.

Keys and values of all heads are linear maps of one small latent, and that is all a token leaves behind, beside one
rotated key that the heads share. Decoding then reads l + a numbers a token, where the heads' own keys and values
would be h (k + a + j).
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from ..cache import StateSpec
from ..cache.latent import Latent
from ..quant import Dense, Weight
from ..rope import Rope
from ..span import Span
from .params import Linear, Norm, Params, RMSNorm, ones


@dataclass(frozen=True)
class LatentAttentionSpec:
    """h heads with queries and keys of k plain and a rotated channels, and values of j channels.

    l       channels of the latent
    rope    frequencies for the a channels
    scale   of scores
    q_rank  channels of the latent that queries are made of; None: they are made of the input itself
    eps     of the norms of both latents
    """

    h: int
    k: int
    a: int
    j: int
    l: int
    rope: Rope
    scale: float
    q_rank: int | None = None
    eps: float = 1e-6

    @property
    def g(self) -> int:
        """KV heads: the rotated key is one for all."""
        return 1

    def build(self, params: Params) -> "LatentAttention":
        """The block, its parameters asked for by name."""
        p, d, h, l, rank = params.under("attention"), params.config.d, self.h, self.l, self.q_rank
        q = h * (self.k + self.a)

        def norm(name: str, size: int) -> RMSNorm:
            return RMSNorm(p.array(name, (size,), init=ones), self.eps)

        return LatentAttention(
            p.norm("norm"),
            p.linear("q_a", d, rank) if rank else None,
            norm("q_a_norm", rank) if rank else None,
            p.linear("q_b", rank, q) if rank else p.linear("q", d, q),
            p.linear("kv_a", d, l + self.a),
            norm("kv_a_norm", l),
            Dense(p.array("kv_b", (h * self.k, l), (h * self.j, l))).T,
            p.linear("out", h * self.j, d),
            self,
        )


@struct.dataclass
class LatentAttention:
    """x + attend(queries, latents) @ out, with

    queries  norm(x) @ q, or q_a_norm(norm(x) @ q_a) @ q: h times k plain and a rotated channels
    latents  kv_a_norm of the first l channels of norm(x) @ kv_a; the other a are the rotated key
    kv_b     (l, h (k + j)): the plain channels of all heads' keys, then all heads' values, from a latent

    Channels are turned in the half-split layout; archs/ reorders the rows of checkpoints that use the other one.
    """

    norm: Norm
    q_a: Any
    q_a_norm: Any
    q: Linear
    kv_a: Linear
    kv_a_norm: Norm
    kv_b: Weight
    out: Linear
    spec: LatentAttentionSpec = struct.field(pytree_node=False)

    def init_state(self, spec: StateSpec):
        return Latent.empty(spec, self.spec.l, self.spec.a)

    @jax.jit
    def __call__(self, x: jax.Array, state, at: Span):
        (b, t, _), s = x.shape, self.spec
        y = self.norm(x)
        q = y if self.q_a is None else self.q_a_norm(y @ self.q_a)
        q_nope, q_rope = jnp.split((q @ self.q).reshape(b, t, s.h, -1), (s.k,), axis=3)
        latent, k_rope = jnp.split(y @ self.kv_a, (s.l,), axis=2)
        latent, k_rope = self.kv_a_norm(latent), s.rope.turn(k_rope[:, :, None], at.pos)[:, :, 0]
        memory = Latent.of_span(latent, k_rope) if state is None else state.append(latent, k_rope, at)
        w_uk, w_uv = (w.reshape(s.h, -1, s.l) for w in jnp.split(self.kv_b.T.dense(), (s.h * s.k,)))
        y, memory = memory.attend(q_nope, s.rope.turn(q_rope, at.pos), w_uk, w_uv, at, scale=s.scale)
        return x + y.reshape(b, t, -1) @ self.out, None if state is None else memory

    def commit(self, pending, at: Span, keep: jax.Array, n_keep: jax.Array):
        return pending.commit(at, keep, n_keep)
