"""The smallest blocks that obey the protocol: one that attends, one that recurs. Any dtype."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from minillm.cache import StateSpec, Transient, new_cache
from minillm.cache.contiguous import slots
from minillm.rope import Rope, default
from minillm.span import Span

# Rounding of float32 sums of different shapes, relative to the largest logit. A logit passes some 4 sums a
# layer; their errors of about one ulp (6e-8) each add up as a random walk, which stays below 64 ulp.
ROUNDING = 64 * 2**-24


@struct.dataclass
class ToyAttention:
    """x + rotary attention with one product for queries, keys and values; two query heads share one KV head."""

    qkv: jax.Array  # d, 4k
    window: int | None = struct.field(pytree_node=False, default=None)

    def init_state(self, spec: StateSpec):
        return new_cache(spec, g=1, k=self.qkv.shape[1] // 4, window=self.window, rope=self.rope)

    @property
    def rope(self) -> Rope:
        return default(self.qkv.shape[1] // 4, 100.0)

    def __call__(self, x, state, at: Span):
        b, t, _ = x.shape
        q, k, v = jnp.split((x @ self.qkv).reshape(b, t, 4, -1), (2, 3), axis=2)
        q, k = self.rope.turn(q, at.pos), self.rope.turn(k, at.pos)
        memory = Transient(k, v) if state is None else state.append(k, v, at)
        y, memory = memory.attend(q, at, window=self.window)
        return x + jnp.tile(y.reshape(b, t, -1), 2), None if state is None else memory

    def commit(self, pending, at: Span, keep, n_keep):
        return pending.commit(at, keep, n_keep)


@struct.dataclass
class ToyRecurrence:
    """x + h, where h = decay * (h of the token before) + x @ inner. The state of a new sequence is 0."""

    inner: jax.Array  # d, d
    decay: jax.Array  # d

    def init_state(self, spec: StateSpec):
        return np.zeros((spec.slots, len(self.decay)), spec.dtype)

    def __call__(self, x, state, at: Span):
        before = jnp.zeros_like(x[:, 0]) if state is None else state[slots(at)]
        before = jnp.where(at.start[:, None] > 0, before, 0)
        parent = jnp.broadcast_to(jnp.arange(-1, x.shape[1] - 1, dtype=jnp.int32), at.pos.shape)
        parent = parent if at.parent is None else at.parent

        def step(i, states):
            above = jnp.take_along_axis(states, (parent[:, i] + 1)[:, None, None], axis=1)[:, 0]
            after = jnp.where(at.valid[:, i, None], self.decay * above + x[:, i] @ self.inner, above)
            return states.at[:, i + 1].set(after)

        states = jnp.pad(
            before[:, None], ((0, 0), (0, x.shape[1]), (0, 0))
        )  # what came before, then after each token
        states = jax.lax.fori_loop(0, x.shape[1], step, states)
        return x + states[:, 1:], (state, states if at.rewind else states[:, -1:])

    def commit(self, pending, at: Span, keep, n_keep):
        state, states = pending
        last = jnp.take_along_axis(keep, jnp.maximum(n_keep - 1, 0)[:, None], axis=1) + 1
        last = jnp.where(n_keep[:, None] > 0, last, 0) if at.rewind else jnp.zeros_like(last)
        kept = jnp.take_along_axis(states, last[..., None], axis=1)[:, 0]
        return state.at[slots(at)].set(kept)


@struct.dataclass
class ToyStack:
    """A tuple of blocks, as a Model has, on activations."""

    blocks: tuple

    def init_state(self, spec: StateSpec):
        return tuple(block.init_state(spec) for block in self.blocks)

    def __call__(self, x, state, at: Span):
        pending = []
        for block, memory in zip(self.blocks, state or (None,) * len(self.blocks), strict=True):
            x, proposed = block(x, memory, at)
            pending.append(proposed)
        return x, tuple(pending)

    def commit(self, pending, at: Span, keep, n_keep):
        return tuple(block.commit(one, at, keep, n_keep) for block, one in zip(self.blocks, pending, strict=True))


def toy_attention(
    rng: np.random.Generator, dtype: str = "float64", k: int = 4, window: int | None = None
) -> ToyAttention:
    return ToyAttention(jnp.asarray(rng.normal(size=(4 * k, 4 * k)) / 4, dtype), window)


def toy_recurrence(rng: np.random.Generator, dtype: str = "float64", d: int = 16) -> ToyRecurrence:
    inner, decay = rng.normal(size=(d, d)) / 4, rng.uniform(0.5, 0.95, d)
    return ToyRecurrence(jnp.asarray(inner, dtype), jnp.asarray(decay, dtype))


def toy_hybrid(rng: np.random.Generator, dtype: str = "float64") -> ToyStack:
    return ToyStack((toy_attention(rng, dtype), toy_recurrence(rng, dtype)))


def token_ids(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(2, 258, shape).astype(np.int32)
