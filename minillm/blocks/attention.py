"""Self-attention with rotary positions and grouped queries (Llama's form), pre-norm, residual inside."""

import jax
import jax.numpy as jnp
from flax import struct

from ..cache import StateSpec, Transient, new_cache
from ..ops import apply_rope, rms_norm, rope_frequencies
from ..quant import Weight
from ..span import Span


@struct.dataclass
class Attention:
    """x + attend(rope(norm(x) @ qkv)) @ out.

    norm [d]; qkv (d, (h + 2g) k), columns in the order queries, keys, values; out (h k, d). Queries and keys
    are rotated in the half-split layout; archs/ reorders the rows of checkpoints that use the other one.
    """

    norm: jax.Array
    qkv: Weight
    out: Weight
    h: int = struct.field(pytree_node=False)
    g: int = struct.field(pytree_node=False)
    k: int = struct.field(pytree_node=False)
    eps: float = struct.field(pytree_node=False)
    rope_theta: float = struct.field(pytree_node=False)

    def init_state(self, spec: StateSpec):
        return new_cache(spec, self.g, self.k)

    @jax.jit  # traced once for all layers of a model, then inlined by XLA
    def __call__(self, x: jax.Array, state, at: Span):
        b, t, _ = x.shape
        qkv = rms_norm(x, self.norm, self.eps) @ self.qkv
        q, k, v = jnp.split(qkv.reshape(b, t, -1, self.k), (self.h, self.h + self.g), axis=2)
        freqs = jnp.asarray(rope_frequencies(self.k, self.rope_theta))
        q, k = apply_rope(q, at.pos, freqs), apply_rope(k, at.pos, freqs)
        memory = Transient(k, v) if state is None else state.append(k, v, at)
        y, _ = memory.attend(q, at)
        return x + y.reshape(b, t, -1) @ self.out, None if state is None else memory

    def commit(self, pending, at: Span, keep: jax.Array, n_keep: jax.Array):
        return pending.commit(at, keep, n_keep)
