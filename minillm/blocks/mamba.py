"""Mamba (Gu and Dao 2023, arXiv:2312.00752): a recurrence whose steps depend on what it reads.

Every channel keeps n numbers, its state. A token says how far time moves on (dt, so how much the state fades), what
it writes (B) and what is read (C). In front stands a short convolution, behind it a gate (figure 3). Pre-norm,
residual inside; `norms` are the variation of FalconMamba and Jamba.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ..cache import StateSpec
from ..cache.recurrent import Recurrent
from ..config import check_words
from ..ops import causal_conv1d, rms_norm, sequential_selective_scan, silu
from ..span import Span
from .params import Linear, Norm, Params, Shape, ones, zeros


@dataclass(frozen=True)
class MambaSpec:
    """i channels of n numbers each; dt comes through a bottleneck of `rank`; the convolution sees w tokens.

    bias       of the projections in and out
    conv_bias  of the convolution
    norms      RMSNorm of dt (in the bottleneck), B and C: none, without weights, or with weights
    norm_eps   their constant
    """

    i: int
    n: int
    rank: int
    w: int = 4
    bias: bool = False
    conv_bias: bool = True
    norms: Literal["", "plain", "weighted"] = ""
    norm_eps: float = 1e-6

    def __post_init__(self):
        check_words(self)

    def build(self, params: Params) -> "Mamba":
        """The block, its parameters asked for by name."""
        p, d, norms = params.under("mamba"), params.config.d, None
        sizes = {"dt": self.rank, "B": self.n, "C": self.n}
        if self.norms == "weighted":
            norms = tuple(p.array(f"{name}_norm", (size,), init=ones) for name, size in sizes.items())
        return Mamba(
            p.norm("norm"),
            p.linear("x_z", d, self.i, self.i, bias=self.bias),
            p.array("conv", (self.w, self.i), init=taps),
            p.array("conv.bias", (self.i,), init=zeros) if self.conv_bias else None,
            p.linear("dt_B_C", self.i, *sizes.values()),
            norms,
            p.linear("dt", self.rank, self.i),
            p.array("dt.bias", (self.i,), init=slow_steps),
            p.array("A_log", (self.n, self.i), init=rates),
            p.array("D", (self.i,), init=ones),
            p.linear("out", self.i, d, bias=self.bias),
            self,
        )


@struct.dataclass
class Mamba:
    """x + (scan(conv(x')) * silu(z)) @ out, where x', z = norm(x) @ x_z; dt, B and C come from what is scanned.

    x_z (d, 2i) and dt_B_C (i, rank + 2n), columns in the order of their names; dt (rank, i); out (i, d). conv [w i]
    and A_log [n i], which is log(-A), have the long axis last, as vector units like it; conv_bias, dt_bias, D [i].
    """

    norm: Norm
    x_z: Linear
    conv: jax.Array
    conv_bias: jax.Array | None
    dt_B_C: Linear
    norms: tuple[jax.Array, ...] | None
    dt: Linear
    dt_bias: jax.Array
    A_log: jax.Array
    D: jax.Array
    out: Linear
    spec: MambaSpec = struct.field(pytree_node=False)

    def init_state(self, spec: StateSpec) -> Recurrent:
        return Recurrent.empty(spec, self.shapes)

    @property
    def shapes(self) -> dict[str, Shape]:
        """What one sequence leaves behind."""
        return {"conv": (self.spec.w - 1, self.spec.i), "ssm": (self.spec.n, self.spec.i)}

    @jax.jit
    def __call__(self, x: jax.Array, state, at: Span):
        memory = Recurrent.unread(x, self.shapes) if state is None else state
        inner, z = jnp.split(self.norm(x) @ self.x_z, 2, axis=-1)
        y, pending = memory.run(self.step, inner, at)
        return x + (y * silu(z)) @ self.out, None if state is None else pending

    def step(self, x: jax.Array, state: dict[str, jax.Array], lengths: jax.Array):
        """Tokens x [b t i] through the convolution and the scan: see `cache.recurrent.Step`."""
        s, wide = self.spec, np.promote_types(x.dtype, np.float32)
        x, conv = causal_conv1d(x, self.conv.T, self.conv_bias, state=state["conv"], lengths=lengths)
        x = silu(x)
        dt, B, C = self.normed(jnp.split(x @ self.dt_B_C, (s.rank, s.rank + s.n), axis=-1))
        # Of the forms of the scan this one is the fastest on a CPU; it swaps [i n] back, so nothing is moved.
        y, ssm = sequential_selective_scan(
            x,
            dt @ self.dt,
            -jnp.exp(self.A_log.astype(wide)).T,
            B,
            C,
            self.D,
            dt_bias=self.dt_bias,
            softplus=True,
            state=jnp.swapaxes(state["ssm"], 1, 2),
            lengths=lengths,
        )
        return y, {"conv": conv, "ssm": jnp.swapaxes(ssm, 1, 2)}

    def normed(self, arrays: list[jax.Array]) -> list[jax.Array]:
        """dt, B and C, normed where the model does that."""
        if not self.spec.norms:
            return arrays
        weights = self.norms or [jnp.ones(x.shape[-1], x.dtype) for x in arrays]
        return [rms_norm(x, weight, self.spec.norm_eps) for x, weight in zip(arrays, weights, strict=True)]

    def commit(self, pending, at: Span, keep: jax.Array, n_keep: jax.Array):
        return pending.commit(at, keep, n_keep)


# How the authors' code begins: a state of which some channels remember a few tokens, others hundreds.
def taps(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """For a convolution [w i] that sees w tokens."""
    bound = shape[0] ** -0.5
    return rng.uniform(-bound, bound, shape).astype(np.float32)


def rates(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """For A_log [n i]: the n numbers of a channel fade at the rates 1 … n (S4D-Real)."""
    return np.broadcast_to(np.log(np.arange(1, shape[0] + 1, dtype=np.float32))[:, None], shape).copy()


def slow_steps(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """For a bias of dt: its softplus lies between 0.001 and 0.1, evenly on a logarithmic scale."""
    dt = np.exp(rng.uniform(np.log(0.001), np.log(0.1), shape))
    return np.log(np.expm1(dt)).astype(np.float32)
