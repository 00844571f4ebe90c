"""Sequence parallelism: tokens and what is remembered of them, dealt out to the devices of a mesh axis like cards.

Token p of a text belongs to device p mod c of c. That device runs it through the layers when a long span is read,
and has its keys and values in row p // c of its memory. So every device has as much to do as the others, however
long the text is and whatever a causal mask hides (Striped Attention, Brandon et al. 2023, arXiv:2311.09431).

    a long span    each device takes its own tokens, and keys and values go round (`ops/attention/ring.py`)
    a short one    is the same on all devices; each attends over its own rows, and results are merged

Blocks see neither: memory that is dealt out has the methods of any other. A window is a mask here, so layers with
one remember as much as others. What goes from token to token by other ways than attention, as in a recurrence,
cannot be dealt out so, and is refused.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from ..blocks import Attention, AttentionSpec, MLPSpec, MoESpec
from ..cache.contiguous import Contiguous, rows_of, slots
from ..cache.rows import Memory, Rows, by_blocks
from ..cache.spec import StateSpec
from ..cache.transient import Transient
from ..config import Config
from ..errors import UserError
from ..model import Model
from ..ops import merge_across, naive_attention, ring_attention
from ..ops.attention.scores import add_sinks
from ..span import Span
from .mesh import SEQ

WORTH_DEALING = 2  # tokens a device; shorter spans are read by all devices alike


@struct.dataclass
class Stripe(Span):
    """One device's tokens of a chain: pos [b t] are every c-th position, n [b] how many are real.

    end [b] is where the whole chain ends, and longest [] the largest end of any sequence on the whole mesh: what
    goes round has to do so equally often everywhere.
    """

    end: Any = None
    longest: Any = None

    def row_pos(self, row: jax.Array) -> jax.Array:
        """i32 [b, s]: the positions of the tokens i32 [s] of the text; -1 where there is none yet."""
        return jnp.where(row[None] < self.end[:, None], row[None], -1)


def stripe_of(at: Span) -> tuple[jax.Array, Stripe]:
    """The indices i32 [b, t / c rounded up] of this device's tokens in a span of t, and the span of those."""
    devices, me = jax.lax.axis_size(SEQ), jax.lax.axis_index(SEQ)
    first = (me - at.start) % devices
    index = first[:, None] + devices * jnp.arange(-(-at.pos.shape[1] // devices), dtype=jnp.int32)
    n = jnp.maximum(-((first - at.n) // devices), 0)  # how many of them are below at.n
    return index, Stripe(at.slot, at.start, n, at.start[:, None] + index, end=at.start + at.n)


def is_dealt(at: Span) -> bool:
    """Whether a span is long enough for every device to take tokens of its own."""
    return at.parent is None and at.pos.shape[1] >= WORTH_DEALING * jax.lax.axis_size(SEQ)


def taken(x: jax.Array, index: jax.Array) -> jax.Array:
    """x [b t …] at index [b m] -> [b m …]; an index past the end stands for padding."""
    index = jnp.minimum(index, x.shape[1] - 1)
    return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)


def in_order(x: jax.Array, at: Span) -> jax.Array:
    """What each device made of its tokens of the span `at`, x [b t/c …] -> [b t …] on all of them."""
    devices, (b, t) = jax.lax.axis_size(SEQ), at.pos.shape
    row, index = jnp.arange(b, dtype=jnp.int32)[:, None], jnp.arange(t, dtype=jnp.int32)
    owner = (at.start[:, None] + index) % devices
    return jax.lax.all_gather(x, SEQ)[owner, row, index // devices]


@struct.dataclass
class Striped:
    """One device's keys [slots g s k] and values [slots g s j]: its row s holds token s * c + its own number."""

    own: Contiguous

    @staticmethod
    def like(memory: Any, spec: StateSpec, devices: int) -> "Striped":
        """An empty one with an attention block's ordinary memory for a pattern, which may be a ring."""
        (_, g, _, k), j = memory.keys.shape, memory.values.shape[3]
        rows = replace(spec, max_len=-(-spec.max_len // devices), dtype=memory.keys.dtype.name)
        return Striped(Contiguous.empty(rows, g, k, j))

    def append(self, k: jax.Array, v: jax.Array, at: Span) -> "Striped":
        """Write those of k [b t g k] and v [b t g j] that are this device's tokens."""
        if not isinstance(at, Stripe):
            index, at = stripe_of(at)
            k, v = taken(k, index), taken(v, index)
        rows = Span.chain(at.pos[:, 0] // jax.lax.axis_size(SEQ), at.n, k.shape[1], at.slot)
        return Striped(self.own.append(k, v, rows))

    def attend(self, q: jax.Array, at: Span, **options) -> tuple[jax.Array, "Striped"]:
        """q [b t h k] -> y [b t h j] and the memory; window, softcap, scale, sinks as in the ops."""
        return attend_dealt(q, self, at, **options), self

    def n_rows(self, at: Span) -> int:
        """Rows of each sequence on a device."""
        return self.own.values.shape[2]

    def n_used(self, at: Span) -> jax.Array:
        """As many as the longest sequence has written on any device."""
        longest = at.longest if isinstance(at, Stripe) else jnp.max(at.start + at.n)
        return -(-longest // jax.lax.axis_size(SEQ))

    def rows(self, at: Span, first, size: int) -> Rows:
        """Rows first … first + size - 1 of the span's sequences, on this device."""
        row = first + jnp.arange(size, dtype=jnp.int32)
        token = row * jax.lax.axis_size(SEQ) + jax.lax.axis_index(SEQ)
        k, v = (rows_of(memory, at, first, size) for memory in (self.own.keys, self.own.values))
        return Rows(k, v, at.row_pos(token), at.row_mask(token))

    def commit(self, at: Span, keep: jax.Array, n_keep: jax.Array) -> "Striped":
        """Keep n_keep [b] tokens, those at indices keep [b m] of the span."""
        if at.parent is None:  # a prefix is already where it belongs
            return self
        devices, token = jax.lax.axis_size(SEQ), at.start[:, None] + keep
        mine = (token % devices == jax.lax.axis_index(SEQ))[:, :, None, None]

        def moved(memory: jax.Array) -> jax.Array:  # from whoever has it to everyone
            return jax.lax.psum(jnp.where(mine, memory[slots(at)[:, None], :, token // devices], 0), SEQ)

        k, v = moved(self.own.keys), moved(self.own.values)
        return self.append(k, v, Span.chain(at.start, n_keep, keep.shape[1], at.slot))


@struct.dataclass
class Passing:
    """No memory beyond the forward, as in scoring: each device's keys [b t g k] and values [b t g j] go round."""

    span: Transient | None = None

    def append(self, k: jax.Array, v: jax.Array, at: Span) -> "Passing":
        """Hold what is of this device's tokens."""
        return Passing(Transient(k, v))

    def attend(self, q: jax.Array, at: Span, **options) -> tuple[jax.Array, "Passing"]:
        """q [b t h k] -> y [b t h j] and the memory; window, softcap, scale, sinks as in the ops."""
        assert self.span is not None, "append comes before attend"
        return attend_dealt(q, self.span, at, **options), self


def attend_dealt(q: jax.Array, memory: Memory, at: Span, sinks=None, **options) -> jax.Array:
    """q [b t h k] over the rows that all devices have of a memory -> y [b t h j].

    Of a `Stripe` each device has its own queries; of any other span all have the same ones.
    """
    around = isinstance(at, Stripe)

    def attend_block(rows: Rows) -> tuple[jax.Array, jax.Array]:
        k, v = rows.k.astype(q.dtype), rows.v.astype(q.dtype)
        places: dict[str, Any] = {"q_pos": at.query_pos, "k_pos": rows.pos, "return_lse": True}
        if around:
            return ring_attention(q, k, v, SEQ, **places, **options)
        return naive_attention(q, k, v, mask=rows.mask, **places, **options)

    row_size = jax.eval_shape(lambda: memory.rows(at, 0, 1).k).size
    y, lse = by_blocks(attend_block, memory, at, row_size, q.shape[2])
    y, lse = (y, lse) if around else merge_across(y.astype(lse.dtype), lse, SEQ)
    return add_sinks(y, lse, sinks)[0].astype(q.dtype)


def check_can_deal(config: Config) -> None:
    """UserError if a layer of the model cannot be dealt out by tokens."""
    for i, layer in enumerate(config.layers):
        for spec in layer:
            if not isinstance(spec, AttentionSpec | MLPSpec | MoESpec):
                kind = type(spec).__name__.removesuffix("Spec")
                raise UserError(
                    f"mesh has an axis {SEQ}, which cannot divide the tokens of a layer of {kind}, as layer {i} of "
                    f"{config.arch} is; leave the axis out"
                )


def init_dealt(model: Model, spec: StateSpec, devices: int) -> tuple[Any, ...]:
    """One device's memory, empty; UserError if memory of such a kind cannot be dealt out."""
    if spec.kind != "contiguous" or spec.coded:
        kind = spec.dtype if spec.coded else spec.kind
        raise UserError(
            f"mesh has an axis {SEQ}, which cannot divide a memory of kind {kind}; leave one of them out"
        )
    state = model.init_state(spec.with_length(1))
    return tuple(memory if memory == () else Striped.like(memory, spec, devices) for memory in state)


def hidden_dealt(model: Model, tokens: jax.Array, state: Any, at: Span) -> tuple[jax.Array, Any]:
    """`Model.hidden` on one device: of a long span it reads its own tokens, and all get what all have made."""
    if not is_dealt(at):
        return model.hidden(tokens, state, at)
    index, own = stripe_of(at)
    everywhere = jax.sharding.get_abstract_mesh().axis_names
    own = replace(own, longest=jax.lax.pmax(jnp.max(own.end), everywhere))
    if state is not None:
        hidden, pending = model.hidden(taken(tokens, index), state, own)
        return in_order(hidden, at), pending
    passing = tuple(Passing() if isinstance(block, Attention) else None for block in model.blocks)
    hidden, _ = model.hidden(taken(tokens, index), passing, own)
    return in_order(hidden, at), (None,) * len(model.blocks)
