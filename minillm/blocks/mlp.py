"""The feed-forward layer, pre-norm, residual inside; gated (SwiGLU, Shazeer 2020, arXiv:2002.05202) or plain."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct

from ..cache import StateSpec
from ..config import check_words
from ..ops import gelu, gelu_tanh, silu
from ..span import Span
from .params import Linear, Norm, Params

Activation = Literal["silu", "gelu", "gelu_tanh"]
ACTIVATIONS = {"silu": silu, "gelu": gelu, "gelu_tanh": gelu_tanh}


@dataclass(frozen=True)
class MLPSpec:
    """f channels inside. post_norm is a norm of the output before it is added."""

    f: int
    activation: Activation = "silu"
    gated: bool = True
    bias: bool = False
    post_norm: bool = False

    def __post_init__(self):
        check_words(self)

    def build(self, params: Params) -> "MLP":
        """The block, its parameters asked for by name."""
        p, d, f = params.under("mlp"), params.config.d, self.f
        name, sizes = ("gate_up", (f, f)) if self.gated else ("up", (f,))
        return MLP(
            p.norm("norm"),
            p.linear(name, d, *sizes, bias=self.bias),
            p.linear("down", f, d, bias=self.bias),
            p.norm("post_norm") if self.post_norm else None,
            self,
        )


@struct.dataclass
class MLP:
    """x + (act(gate) * up) @ down, where gate, up = norm(x) @ up; without a gate x + act(norm(x) @ up) @ down.

    up (d, 2f), columns in the order gate, up; down (f, d). It remembers nothing.
    """

    norm: Norm
    up: Linear
    down: Linear
    post_norm: Any
    spec: MLPSpec = struct.field(pytree_node=False)

    def init_state(self, spec: StateSpec):
        return ()

    @jax.jit
    def __call__(self, x: jax.Array, state, at: Span):
        act, y = ACTIVATIONS[self.spec.activation], self.norm(x) @ self.up
        if self.spec.gated:
            gate, up = jnp.split(y, 2, axis=-1)
            y = act(gate) * up
        else:
            y = act(y)
        y = y @ self.down
        return x + (self.post_norm(y) if self.spec.post_norm else y), ()

    def commit(self, pending, at: Span, keep: jax.Array, n_keep: jax.Array):
        return ()
