"""Heavy hitters (H2O; Zhang et al. 2023, arXiv:2306.14048): forget what is least attended to.

Each KV head keeps the newest tokens and, of the older ones, those that have drawn the most attention so far, summed
over all queries. Rows hold tokens in no order, so each knows its position.

Which tokens a head forgets depends on when it must: reading eight tokens at once, it decides once, with all eight
before it. So a text read in other portions may be continued differently, and what combines portions freely, such
as drafts and batches, is lossless with every other memory but not with this one.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ..ops.attention.naive import average
from ..ops.attention.scores import add_sinks, only_tokens, scores, visible
from ..span import Span, ancestors
from ..xla import on_device
from .contiguous import slots
from .spec import StateSpec


@struct.dataclass
class H2O:
    """Rows of committed tokens by KV head, and what the span adds.

    keys    [slots, g, s, k], values [slots, g, s, j]
    pos     i32 [slots, g, s], which token a row holds; -1: none
    drawn   float32 [slots, g, s], the attention it has drawn
    span    keys [b, t, g, k] and values [b, t, g, j] of proposed tokens
    looks   float32 [b, t, g, s + t], the attention that each token of the span paid to all
    """

    keys: jax.Array
    values: jax.Array
    pos: jax.Array
    drawn: jax.Array
    span: tuple[jax.Array, jax.Array] | None = None
    looks: jax.Array | None = None

    @staticmethod
    def empty(spec: StateSpec, g: int, k: int, j: int) -> "H2O":
        """A memory of spec.budget tokens in which nothing is written yet."""
        shape = (spec.slots, g, spec.budget)
        keys, values = (on_device(np.zeros((*shape, width), spec.dtype)) for width in (k, j))
        return H2O(keys, values, on_device(np.full(shape, -1, np.int32)), on_device(np.zeros(shape, np.float32)))

    def append(self, k: jax.Array, v: jax.Array, at: Span) -> "H2O":
        """Propose k [b t g k] and v [b t g j], rounded as they will be remembered."""
        return replace(self, span=(k.astype(self.keys.dtype), v.astype(self.values.dtype)))

    def attend(self, q: jax.Array, at: Span, window=None, sinks=None, **options) -> tuple[jax.Array, "H2O"]:
        """q [b t h k] -> y [b t h j] and the memory; window, softcap, scale, sinks as in the ops.

        KV heads remember different tokens, so to the ops each is a sequence of its own.
        """
        (b, t, h, width), g = q.shape, self.keys.shape[1]
        keys, values, pos, _ = self.with_span(at)
        k, v = (x.reshape(b * g, -1, 1, x.shape[-1]).astype(q.dtype) for x in (keys, values))
        q_pos, k_pos = jnp.repeat(at.query_pos, g, axis=0), pos.reshape(b * g, -1)
        seen = visible(q_pos, k_pos, causal=True, window=window, mask=self.kin(at))
        q = jnp.moveaxis(q.reshape(b, t, g, h // g, width), 2, 1).reshape(b * g, t, h // g, width)
        score = scores(q, k, q_pos, k_pos, seen, **{"scale": None, "softcap": None} | options)
        y, lse = average(score, only_tokens(v, k_pos))
        y, lse = (jnp.moveaxis(x.reshape(b, g, *x.shape[1:]), 1, 2) for x in (y, lse))  # b t g r …
        y, lse = add_sinks(y.reshape(b, t, h, -1), lse.reshape(b, t, h), sinks)
        looks = share(score.reshape(b, g, h // g, t, -1), lse.reshape(b, t, g, h // g))
        return y.astype(q.dtype), replace(self, looks=looks)

    def with_span(self, at: Span) -> tuple[jax.Array, ...]:
        """The span's sequences' keys, values, pos and drawn, [b, g, s + t, …], its own tokens last."""
        assert self.span is not None, "append comes before attend"
        k, v = (jnp.moveaxis(x, 1, 2) for x in self.span)
        slot, new = slots(at), at.start == 0  # whose slot may still hold another's rows
        pos = jnp.where(new[:, None, None], -1, self.pos[slot])
        drawn = jnp.where(pos < 0, 0, self.drawn[slot])
        here = jnp.broadcast_to(at.query_pos[:, None], k.shape[:3])
        parts = (self.keys[slot], k), (self.values[slot], v), (pos, here), (drawn, jnp.zeros(here.shape))
        keys, values, pos, drawn = (jnp.concatenate(pair, axis=2) for pair in parts)
        return keys, values, pos, drawn

    def kin(self, at: Span) -> jax.Array | None:
        """bool [b g, t, s + t]: all rows and a token's ancestors; None for a chain, by order."""
        if at.parent is None:
            return None
        (_, g, s), (b, t) = self.pos.shape, at.pos.shape
        mask = jnp.concatenate([jnp.ones((b, t, s), bool), ancestors(at.parent)], axis=2)
        return jnp.repeat(mask, g, axis=0)

    def commit(self, at: Span, keep: jax.Array, n_keep: jax.Array) -> "H2O":
        """Take in n_keep [b] tokens, those at indices keep [b m] of the span; keep the rows that matter most."""
        assert self.looks is not None, "attend comes before commit"
        keys, values, pos, drawn = self.with_span(at)
        (b, t), s = at.pos.shape, self.pos.shape[2]
        index = jnp.where(jnp.arange(keep.shape[1], dtype=jnp.int32) < n_keep[:, None], keep, t)
        stays = jnp.zeros((b, t), bool).at[jnp.arange(b)[:, None], index].set(True, mode="drop")
        drawn = drawn + jnp.sum(jnp.where(stays[:, :, None, None], self.looks, 0), axis=1)
        pos = pos.at[:, :, s:].set(jnp.where(stays[:, None], pos[:, :, s:], -1))
        recent = pos >= (at.start + n_keep - s // 2)[:, None, None]
        worth = jnp.where(pos < 0, -jnp.inf, jnp.where(recent, jnp.inf, drawn))
        _, best = jax.lax.top_k(worth, s)

        def written(memory: jax.Array, x: jax.Array) -> jax.Array:
            order = best.reshape(*best.shape, *[1] * (x.ndim - 3))
            return memory.at[slots(at)].set(jnp.take_along_axis(x, order, axis=2))

        return H2O(
            written(self.keys, keys),
            written(self.values, values),
            written(self.pos, pos),
            written(self.drawn, drawn),
        )


def share(score: jax.Array, lse: jax.Array) -> jax.Array:
    """Softmax weights from score [b g r t s] and lse [b t g r], summed over the heads of a KV head: [b t g s]."""
    lse = jnp.moveaxis(lse, 1, 3)[..., None]
    return jnp.moveaxis(jnp.sum(jnp.where(score == -jnp.inf, 0, jnp.exp(score - lse)), axis=2), 1, 2)
