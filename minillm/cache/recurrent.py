"""What a recurrent block remembers: arrays of fixed size a sequence, the state after its last committed token.

There is nothing to cut off when drafted tokens are taken back: the state after every token of the span must be
there. So a span that may be taken back goes through the recurrence token by token and keeps all its states,
each token starting from the state of the one it follows, which makes a draft tree no special case.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ..span import Span
from ..xla import on_device
from .spec import StateSpec

# step(inputs, state, lengths) -> (y, state): inputs a tree of [b, t, ...], y [b, t, ...], state a dict of
# [b, ...], lengths i32 [b]: how many of the t tokens are real; the others change no state.
Step = Callable[[Any, dict[str, jax.Array], jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


@struct.dataclass
class Recurrent:
    """committed: arrays [slots, ...] by name. proposed: arrays [b, 1 or t + 1, ...] of states to choose from."""

    committed: dict[str, jax.Array]
    proposed: dict[str, jax.Array] | None = None

    @staticmethod
    def empty(spec: StateSpec, shapes: dict[str, tuple[int, ...]]) -> "Recurrent":
        """Nothing read yet."""
        zeros = {name: np.zeros((spec.slots, *s), spec.state_dtype) for name, s in shapes.items()}
        return Recurrent({name: on_device(array) for name, array in zeros.items()})

    @staticmethod
    def unread(x: jax.Array, shapes: dict[str, tuple[int, ...]]) -> "Recurrent":
        """The same inside a program, for a forward without a memory: one slot for each row of x [b, ...]."""
        dtype = np.promote_types(x.dtype, np.float32)
        return Recurrent({name: jnp.zeros((len(x), *s), dtype) for name, s in shapes.items()})

    def run(self, step: Step, inputs: Any, at: Span) -> tuple[jax.Array, "Recurrent"]:
        """Put the span's inputs through `step` -> y [b, t, ...], and the states it proposes."""
        before = {name: new_as_zero(mine(array, at), at) for name, array in self.committed.items()}
        if at.rewind:
            y, states = one_by_one(step, inputs, before, at)
        else:
            y, after = step(inputs, before, at.n)
            states = {name: array[:, None] for name, array in after.items()}
        return y, Recurrent(self.committed, states)

    def commit(self, at: Span, keep: jax.Array, n_keep: jax.Array) -> "Recurrent":
        """The state after the last of the n_keep [b] tokens at indices keep [b m] of the span."""
        assert self.proposed is not None, "run comes before commit"
        if at.rewind:
            index = jnp.take_along_axis(keep, jnp.maximum(n_keep - 1, 0)[:, None], axis=1)[:, 0]
            last = jnp.where(n_keep > 0, index + 1, 0)
            kept = {name: chosen(array, last) for name, array in self.proposed.items()}
        else:  # a span that stays as a whole has left one state
            kept = {name: array[:, 0] for name, array in self.proposed.items()}
        return Recurrent({name: replaced(array, kept[name], at) for name, array in self.committed.items()})


def one_by_one(step: Step, inputs: Any, before: dict[str, jax.Array], at: Span) -> tuple[jax.Array, dict]:
    """Each token from the state of the token it follows -> y [b, t, ...], states before all and after each."""
    b, t = at.pos.shape
    chain = jnp.broadcast_to(jnp.arange(-1, t - 1, dtype=jnp.int32), (b, t))
    parent = chain if at.parent is None else at.parent

    def token(i: Any, carry: Any) -> Any:
        y, states = carry
        above = {name: chosen(array, parent[:, i] + 1) for name, array in states.items()}
        here = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, i, 1, axis=1), inputs)
        out, after = step(here, above, (i < at.n).astype(jnp.int32))
        states = {name: array.at[:, i + 1].set(after[name].astype(array.dtype)) for name, array in states.items()}
        return y.at[:, i].set(out[:, 0]), states

    room = {name: jnp.zeros((b, t, *x.shape[1:]), x.dtype) for name, x in before.items()}
    states = {name: jnp.concatenate([x[:, None], room[name]], axis=1) for name, x in before.items()}
    shape = jax.eval_shape(step, jax.tree.map(lambda x: x[:, :1], inputs), before, at.n)[0]
    y = jnp.zeros((b, t, *shape.shape[2:]), shape.dtype)
    return jax.lax.fori_loop(0, t, token, (y, states))


def chosen(states: jax.Array, index: jax.Array) -> jax.Array:
    """states [b, s, ...], index i32 [b] -> [b, ...]."""
    return jnp.take_along_axis(states, index.reshape(-1, *[1] * (states.ndim - 1)), axis=1)[:, 0]


def mine(memory: jax.Array, at: Span) -> jax.Array:
    """The states [b, ...] of the span's sequences, from memory [slots, ...]."""
    return memory if at.slot is None else memory[at.slot]


def replaced(memory: jax.Array, states: jax.Array, at: Span) -> jax.Array:
    """Memory [slots, ...] with these states [b, ...] of the span's sequences."""
    states = states.astype(memory.dtype)
    return states if at.slot is None else memory.at[at.slot].set(states)


def new_as_zero(state: jax.Array, at: Span) -> jax.Array:
    """State [b, ...] with zeros where a sequence begins: its slot may still hold another's, or NaN."""
    return jnp.where((at.start > 0).reshape(-1, *[1] * (state.ndim - 1)), state, 0)
