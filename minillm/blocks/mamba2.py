"""Mamba-2 (Dao and Gu 2024, arXiv:2405.21060): Mamba with one decay a head, and so written as products of matrices.

h heads of k channels keep k x n numbers each; g groups of heads share what is written (B) and read (C). Unlike in
Mamba-1 everything comes out of one projection, and the convolution also goes over B and C (figure 6). Behind the
recurrence stand a gate and an RMSNorm. Pre-norm, residual inside.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ..cache import StateSpec
from ..cache.recurrent import Recurrent
from ..ops import causal_conv1d, chunked_ssd, recurrent_ssd, rms_norm, silu
from ..span import Span
from .mamba import slow_steps, taps
from .params import Linear, Norm, Params, Shape, ones, zeros

# Tokens a chunk. For 512 tokens of 24 heads of 64 x 128, two cores take 6.4 ms with 32, 8 with 64 and 30 with 256,
# and 11 one by one.
CHUNK = 32


@dataclass(frozen=True)
class Mamba2Spec:
    """h heads of k channels, each with n numbers a channel, in g groups; the convolution sees w tokens.

    bias       of the projections in and out
    conv_bias  of the convolution
    """

    h: int
    k: int
    n: int
    g: int = 1
    w: int = 4
    bias: bool = False
    conv_bias: bool = True

    @property
    def i(self) -> int:
        """Channels of all heads together."""
        return self.h * self.k

    @property
    def mixed(self) -> int:
        """Channels that go through the convolution: x, B and C."""
        return self.i + 2 * self.g * self.n

    def build(self, params: Params) -> "Mamba2":
        """The block, its parameters asked for by name."""
        p, d = params.under("mamba2"), params.config.d
        return Mamba2(
            p.norm("norm"),
            p.linear("z_xBC_dt", d, self.i, self.mixed, self.h, bias=self.bias),
            p.array("conv", (self.w, self.mixed), init=taps),
            p.array("conv.bias", (self.mixed,), init=zeros) if self.conv_bias else None,
            p.array("dt_bias", (self.h,), init=slow_steps),
            p.array("A_log", (self.h,), init=rates),
            p.array("D", (self.h,), init=ones),
            p.array("y_norm", (self.i,), init=ones),
            p.linear("out", self.i, d, bias=self.bias),
            params.config.eps,
            self,
        )


@struct.dataclass
class Mamba2:
    """x + norm(ssd(conv(x', B, C), dt) * silu(z)) @ out, where z, x', B, C, dt = norm(x) @ z_xBC_dt.

    z_xBC_dt (d, 2i + 2 g n + h), columns in the order of its name, i = h k; conv [w, i + 2 g n]; dt_bias, A_log
    (which is log(-A)) and D [h]; y_norm [i], a norm of each group of heads by itself; out (i, d).
    """

    norm: Norm
    z_xBC_dt: Linear
    conv: jax.Array
    conv_bias: jax.Array | None
    dt_bias: jax.Array
    A_log: jax.Array
    D: jax.Array
    y_norm: jax.Array
    out: Linear
    eps: float = struct.field(pytree_node=False)
    spec: Mamba2Spec = struct.field(pytree_node=False)

    def init_state(self, spec: StateSpec) -> Recurrent:
        return Recurrent.empty(spec, self.shapes)

    @property
    def shapes(self) -> dict[str, Shape]:
        """What one sequence leaves behind."""
        s = self.spec
        return {"conv": (s.w - 1, s.mixed), "ssm": (s.h, s.k, s.n)}

    @jax.jit
    def __call__(self, x: jax.Array, state, at: Span):
        s, memory = self.spec, Recurrent.unread(x, self.shapes) if state is None else state
        z, xBC, dt = jnp.split(self.norm(x) @ self.z_xBC_dt, (s.i, s.i + s.mixed), axis=-1)
        y, pending = memory.run(self.step, (xBC, dt), at)
        y = self.normed(y.reshape(z.shape) * silu(z))
        return x + y @ self.out, None if state is None else pending

    def step(self, inputs: Any, state: dict[str, jax.Array], lengths: jax.Array):
        """Tokens (xBC, dt) [b t ...] through the convolution and the recurrence: see `cache.recurrent.Step`."""
        (xBC, dt), s = inputs, self.spec
        b, t, _ = xBC.shape
        xBC, conv = causal_conv1d(xBC, self.conv.T, self.conv_bias, state=state["conv"], lengths=lengths)
        x, B, C = jnp.split(silu(xBC), (s.i, s.i + s.g * s.n), axis=-1)
        ssd = recurrent_ssd if t == 1 else partial(chunked_ssd, chunk=CHUNK)
        y, ssm = ssd(
            x.reshape(b, t, s.h, s.k),
            dt,
            -jnp.exp(self.A_log.astype(np.promote_types(dt.dtype, np.float32))),
            B.reshape(b, t, s.g, s.n),
            C.reshape(b, t, s.g, s.n),
            self.D,
            dt_bias=self.dt_bias,
            softplus=True,
            state=state["ssm"],
            lengths=lengths,
        )
        return y, {"conv": conv, "ssm": ssm}

    def normed(self, y: jax.Array) -> jax.Array:
        """RMSNorm of y [b t i], each group of heads by itself."""
        g, by_group = self.spec.g, jax.vmap(partial(rms_norm, eps=self.eps), in_axes=(-2, 0), out_axes=-2)
        return by_group(y.reshape(*y.shape[:-1], g, -1), self.y_norm.reshape(g, -1)).reshape(y.shape)

    def commit(self, pending, at: Span, keep: jax.Array, n_keep: jax.Array):
        return pending.commit(at, keep, n_keep)


def rates(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """For A_log [h]: the heads fade at rates between 1 and 16, as in the authors' code."""
    return np.log(rng.uniform(1, 16, shape)).astype(np.float32)
