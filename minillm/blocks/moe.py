"""Mixture of experts in place of the feed-forward layer, pre-norm, residual inside.

Shazeer et al. 2017, arXiv:1701.06538: a router sends each token to a few of many small feed-forward layers and adds
what they make of it by its weights, so that a model has many more parameters than any one token costs. The rules
by which tokens are routed, and their papers, stand in `ops/moe/ref.py`. No token is ever dropped.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ..cache import StateSpec
from ..config import check_words
from ..ops import clamped_swiglu, route
from ..ops.moe.ref import Scoring
from ..ops.moe.sorted import through_experts
from ..span import Span
from .mlp import ACTIVATIONS, Activation
from .params import Experts, Linear, Norm, Params, zeros


@dataclass(frozen=True)
class MoESpec:
    """e experts of f channels, of which each token goes to top_k; everything else is as in Mixtral.

    scoring, normalise, groups, top_groups, scale   as in `ops.route`
    choice_bias   each expert has a bias that takes part in the choice and not in the weights
    activation    inside an expert, where gated as in `MLPSpec`; clamp is the limit of `ops.clamped_swiglu`, which
                  then takes its place
    bias          the router's and the experts' matrices have one
    f_shared      channels of a feed-forward layer that serves every token besides, 0 for none
    shared_gate   what that layer gives is multiplied by sigmoid(norm(x) @ gate)
    """

    e: int
    f: int
    top_k: int
    scoring: Scoring = "softmax"
    normalise: bool = True
    groups: int | None = None
    top_groups: int | None = None
    scale: float = 1.0
    choice_bias: bool = False
    activation: Activation = "silu"
    gated: bool = True
    clamp: float | None = None
    bias: bool = False
    f_shared: int = 0
    shared_gate: bool = False

    def __post_init__(self):
        check_words(self)
        if self.top_k > self.e:
            raise ValueError(f"MoESpec: top_k is {self.top_k}, expected at most e = {self.e}")
        if self.clamp is not None and not (self.gated and self.activation == "silu"):
            raise ValueError(f"MoESpec: clamp is {self.clamp}, expected None unless experts are gated by silu")
        if self.shared_gate and not self.f_shared:
            raise ValueError("MoESpec: shared_gate is True, expected False where f_shared is 0")

    def build(self, params: Params) -> "MoE":
        """The block, its parameters asked for by name."""
        p, d, shared = params.under("moe"), params.config.d, self.f_shared
        up, parts = ("gate_up", 2) if self.gated else ("up", 1)
        return MoE(
            p.norm("norm"),
            p.linear("router", d, self.e, bias=self.bias),
            p.array("choice_bias", (self.e,), init=zeros) if self.choice_bias else None,
            p.experts(up, self.e, d, parts * self.f, bias=self.bias),
            p.experts("down", self.e, self.f, d, bias=self.bias),
            p.linear(f"shared_{up}", d, *[shared] * parts) if shared else None,
            p.linear("shared_down", shared, d) if shared else None,
            p.linear("shared_gate", d, 1) if self.shared_gate else None,
            self,
        )


class Routed(NamedTuple):
    """How many of a span's tokens each expert served, i32 [e]; its mean share [e] of a softmax of the scores."""

    load: jax.Array
    probability: jax.Array


@struct.dataclass
class MoE:
    """x + the sum of weight * (act(gate) * up) @ down over a token's experts, where gate, up = norm(x) @ up.

    router (d, e); each expert has up (d, 2f), columns in the order gate, up, and down (f, d); shared_up and
    shared_down are such a layer for every token. It remembers nothing; what it proposes is where tokens
    went: see `expert_load`.
    """

    norm: Norm
    router: Linear
    choice_bias: jax.Array | None
    up: Experts
    down: Experts
    shared_up: Any
    shared_down: Any
    shared_gate: Any
    spec: MoESpec = struct.field(pytree_node=False)

    def init_state(self, spec: StateSpec):
        return ()

    @jax.jit
    def __call__(self, x: jax.Array, state, at: Span):
        y = self.norm(x)
        rows = y.reshape(-1, y.shape[-1])
        weights, experts = self.route(rows)
        experts = jnp.where(at.valid.reshape(-1, 1), experts, self.spec.e)  # padding goes to none
        mixed, load = through_experts(self.run, rows, weights, experts, self.spec.e)
        x = x + mixed.reshape(x.shape)
        return (x + self.shared(y) if self.spec.f_shared else x), Routed(load, self.probability(rows, at))

    def route(self, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Normed tokens [t d] -> weights [t m] in float32 or wider, experts i32 [t m], best first."""
        s = self.spec
        return route(
            self.scores(y),
            top_k=s.top_k,
            scoring=s.scoring,
            normalise=s.normalise,
            bias=self.choice_bias,
            groups=s.groups,
            top_groups=s.top_groups,
            scale=s.scale,
        )

    def scores(self, y: jax.Array) -> jax.Array:
        """The router's word on normed tokens [t d] -> [t e] in float32 or wider."""
        return y.astype(np.promote_types(y.dtype, np.float32)) @ self.router

    def probability(self, y: jax.Array, at: Span) -> jax.Array:
        """Each expert's share [e] of a softmax of the scores, over the real ones of normed tokens [t d]."""
        real, shares = at.valid.reshape(-1, 1), jax.nn.softmax(self.scores(y))
        n = jnp.maximum(jnp.sum(real, dtype=shares.dtype), 1)
        return jnp.sum(jnp.where(real, shares, 0), axis=0) / n

    def run(self, y: jax.Array, sizes: jax.Array) -> jax.Array:
        """Each expert on its rows: y [rows d] sorted by expert, sizes i32 [e] -> [rows d]."""
        return self.down.grouped(self.inside(self.up.grouped(y, sizes)), sizes)

    def shared(self, y: jax.Array) -> jax.Array:
        """What every token gets: y [b t d] -> [b t d]."""
        out = self.inside(y @ self.shared_up) @ self.shared_down
        return out * jax.nn.sigmoid(y @ self.shared_gate) if self.spec.shared_gate else out

    def inside(self, y: jax.Array) -> jax.Array:
        """What stands between the two matrices of a feed-forward layer: [… 2f] -> [… f]; [… f] without a gate."""
        act = ACTIVATIONS[self.spec.activation]
        if not self.spec.gated:
            return act(y)
        gate, up = jnp.split(y, 2, axis=-1)
        return act(gate) * up if self.spec.clamp is None else clamped_swiglu(gate, up, self.spec.clamp)

    def commit(self, pending, at: Span, keep: jax.Array, n_keep: jax.Array):
        return ()


def expert_load(model: Any, tokens: jax.Array) -> jax.Array:
    """How many of the tokens i32 [b, t] each expert of a `Model` serves: i32 [layers, e], layers with experts only.

    A row sums to b * t * top_k; the more even it is, the better an expert's parameters are used. ValueError if the
    model has no experts, or an id is not in its vocabulary.
    """
    ids, v = np.asarray(tokens), model.embed.shape[0]
    if ids.ndim != 2 or ids.size == 0 or not 0 <= ids.min() <= ids.max() < v:
        raise ValueError(f"expert_load: tokens have shape {list(ids.shape)}, expected ids [b, t] from 0 to {v - 1}")
    if not any(isinstance(block, MoE) for block in model.blocks):
        raise ValueError("expert_load: the model has no block with experts")
    return loads(model, jnp.asarray(ids, jnp.int32))


@jax.jit
def loads(model: Any, tokens: jax.Array) -> jax.Array:
    """`expert_load` of valid token ids."""
    b, t = tokens.shape
    at = Span.chain(jnp.zeros(b, jnp.int32), jnp.full(b, t, jnp.int32), t)
    _, pending = model.hidden(tokens, None, at)
    return jnp.stack([one.load for block, one in zip(model.blocks, pending, strict=True) if isinstance(block, MoE)])
