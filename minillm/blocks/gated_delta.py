"""Gated DeltaNet (Yang et al. 2024, arXiv:2412.06464): attention's queries and keys over a memory of fixed size.

Each head keeps one matrix, which maps keys to values. A token lets it fade, looks up what stands under its key,
and replaces a part of that by its value; then its query reads. Both parts depend on the token: how much fades
(`log_decay`) and how much is replaced (`beta`). Pre-norm, residual inside; in the form of Qwen3-Next.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ..cache import StateSpec
from ..cache.recurrent import Recurrent
from ..ops import causal_conv1d, chunked_gated_delta, recurrent_gated_delta, silu, softplus
from ..span import Span
from .mamba import slow_steps, taps
from .mamba2 import rates
from .params import Linear, Norm, Params, Shape

EPS = 1e-6  # under the root of a query's or key's length


@dataclass(frozen=True)
class GatedDeltaSpec:
    """g heads of queries and keys, k channels each, serve r = h / g heads of values each, j channels each.

    w is how many tokens the convolution in front sees.
    """

    h: int
    g: int
    k: int
    j: int
    w: int = 4

    @property
    def r(self) -> int:
        """Value heads a key head."""
        return self.h // self.g

    @property
    def channels(self) -> int:
        """Of queries, keys and values together: what goes through the convolution."""
        return 2 * self.g * self.k + self.h * self.j

    def build(self, params: Params) -> "GatedDeltaNet":
        """The block, its parameters asked for by name."""
        p, d, h, j = params.under("delta"), params.config.d, self.h, self.j
        return GatedDeltaNet(
            p.norm("norm"),
            p.linear("qkvz", d, self.channels, h * j),
            p.linear("ba", d, h, h),
            p.array("conv", (self.w, self.channels), init=taps),
            p.array("A_log", (h,), init=rates),
            p.array("dt_bias", (h,), init=slow_steps),
            p.norm("y_norm", j),
            p.linear("out", h * j, d),
            self,
        )


@struct.dataclass
class GatedDeltaNet:
    """x + (norm(delta(conv(q, k, v))) * silu(z)) @ out, where q, k, v, z = norm(x) @ qkvz and b, a = norm(x) @ ba.

    qkvz (d, 2 g k + 2 h j) and ba (d, 2 h), columns in the order of their names; conv [w, 2 g k + h j] goes over q,
    k and v; A_log and dt_bias [h]; y_norm is over the j channels of a head; out (h j, d).
    """

    norm: Norm
    qkvz: Linear
    ba: Linear
    conv: jax.Array
    A_log: jax.Array
    dt_bias: jax.Array
    y_norm: Norm
    out: Linear
    spec: GatedDeltaSpec = struct.field(pytree_node=False)

    def init_state(self, spec: StateSpec) -> Recurrent:
        return Recurrent.empty(spec, self.shapes)

    @property
    def shapes(self) -> dict[str, Shape]:
        """What one sequence leaves behind."""
        s = self.spec
        return {"conv": (s.w - 1, s.channels), "delta": (s.h, s.k, s.j)}

    @jax.jit
    def __call__(self, x: jax.Array, state, at: Span):
        s, wide = self.spec, np.promote_types(x.dtype, np.float32)
        normed = self.norm(x)
        qkv, z = jnp.split(normed @ self.qkvz, (s.channels,), axis=-1)
        beta, a = jnp.split((normed @ self.ba).astype(wide), 2, axis=-1)
        log_decay = -jnp.exp(self.A_log.astype(wide)) * softplus(a + self.dt_bias.astype(wide))
        memory = Recurrent.unread(x, self.shapes) if state is None else state
        y, pending = memory.run(self.step, (qkv.astype(wide), log_decay, jax.nn.sigmoid(beta)), at)
        y = self.y_norm(y) * silu(z.reshape(y.shape).astype(wide))
        return x + y.reshape(*x.shape[:2], -1).astype(x.dtype) @ self.out, None if state is None else pending

    def step(self, inputs: Any, state: dict[str, jax.Array], lengths: jax.Array):
        """Tokens through the convolution and the rule: see `cache.recurrent.Step`."""
        (qkv, log_decay, beta), s = inputs, self.spec
        qkv, conv = causal_conv1d(qkv, self.conv.T, state=state["conv"], lengths=lengths)
        q, k, v = jnp.split(silu(qkv), (s.g * s.k, 2 * s.g * s.k), axis=-1)
        q, k = (jnp.repeat(unit(heads(x, s.g)), s.r, axis=2) for x in (q, k))
        rule = recurrent_gated_delta if qkv.shape[1] == 1 else chunked_gated_delta
        y, delta = rule(q, k, heads(v, s.h), log_decay, beta, state=state["delta"], lengths=lengths)
        return y, {"conv": conv, "delta": delta}

    def commit(self, pending, at: Span, keep: jax.Array, n_keep: jax.Array):
        return pending.commit(at, keep, n_keep)


def heads(x: jax.Array, count: int) -> jax.Array:
    """x [b t i] as [b t count i/count]."""
    return x.reshape(*x.shape[:2], count, -1)


def unit(x: jax.Array) -> jax.Array:
    """x [..., k] scaled to length 1."""
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + EPS)
