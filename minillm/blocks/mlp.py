"""The gated feed-forward layer (SwiGLU, Shazeer 2020, arXiv:2002.05202), pre-norm, residual inside."""

import jax
import jax.numpy as jnp
from flax import struct

from ..cache import StateSpec
from ..ops import rms_norm
from ..quant import Weight
from ..span import Span


@struct.dataclass
class MLP:
    """x + (silu(gate) * up) @ down, where gate, up = norm(x) @ gate_up.

    norm [d]; gate_up (d, 2f), columns in the order gate, up; down (f, d). It remembers nothing.
    """

    norm: jax.Array
    gate_up: Weight
    down: Weight
    eps: float = struct.field(pytree_node=False)

    def init_state(self, spec: StateSpec):
        return ()

    @jax.jit
    def __call__(self, x: jax.Array, state, at: Span):
        gate, up = jnp.split(rms_norm(x, self.norm, self.eps) @ self.gate_up, 2, axis=-1)
        return x + (jax.nn.silu(gate) * up) @ self.down, ()

    def commit(self, pending, at: Span, keep: jax.Array, n_keep: jax.Array):
        return ()
