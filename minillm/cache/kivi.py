"""Keys and values in 2 or 4 bits (KIVI; Liu et al. 2024, arXiv:2402.02750).

A few channels of the keys are large in all tokens, so a scale should belong to a channel; values have no such
channels, so theirs belongs to a token. The keys of GROUP tokens that follow each other share a scale for each
channel. The values of a token share one for each group of GROUP channels, as in the paper's algorithm, or of as
many as divide both GROUP and a head's channels. The newest tokens stay as they are.

    x = least + scale * code    least = min x, scale = (max x - min x) / (2^bits - 1), of a group of numbers x

A scale that tokens share must not change as they come, nor depend on drafts that are taken back. So what a query
sees follows from positions alone: all but the newest RESIDUAL tokens, in whole groups, itself counted, are coded,
and the other RESIDUAL to RESIDUAL + GROUP - 1 are not. (In the paper they are RESIDUAL at most, values are coded
token by token, and the prompt is read with nothing coded, so a text would depend on how much of it was a prompt.)

A group of tokens is one row of a plain memory; the newest tokens are kept in a ring. Each token of a span may have
to be there in both forms, since the span's later queries can see coded what its earlier ones do not.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from ..errors import UserError
from ..ops import decode_ints, encode_ints, pack, unpack
from ..ops.formats.integers_ref import CodedInts
from ..span import Span
from .contiguous import Contiguous, slots
from .ring import Ring
from .rows import Rows, attend_rows
from .spec import RESIDUAL, StateSpec

GROUP = 32  # numbers that share a scale
PAIR = 4  # bytes: scale and least number of a group, in bfloat16


@struct.dataclass
class Kivi:
    """groups: tokens coded by GROUP, also past the committed length; recent: the newest ones and the span's."""

    groups: Contiguous
    recent: Ring
    bits: int = struct.field(pytree_node=False)

    @staticmethod
    def empty(spec: StateSpec, g: int, k: int, j: int) -> "Kivi":
        """A memory in which nothing is written yet, for g heads: keys of k channels, values of j.

        UserError if codes of a value do not fill bytes.
        """
        if j * spec.bits % 8:
            raise UserError(
                f"cache kivi{spec.bits} packs {8 // spec.bits} codes into a byte, but the heads' values have {j} "
                "channels; use int8 or fp8"
            )
        n_groups = max(spec.max_len // GROUP, 1)
        widths = k * width(GROUP, GROUP, spec.bits), GROUP * width(j, by_token(j), spec.bits)
        groups = Contiguous.empty(StateSpec(spec.slots, n_groups, dtype="int8"), g, *widths)
        return Kivi(groups, Ring.empty(spec.with_length(RESIDUAL + GROUP), g, k, j), spec.bits)

    def append(self, k: jax.Array, v: jax.Array, at: Span) -> "Kivi":
        """Propose k [b t g k] and v [b t g j]; the groups that a chain makes whole are coded."""
        if at.parent is not None and k.shape[1] > RESIDUAL:
            raise ValueError(f"Kivi: a draft tree of {k.shape[1]} tokens, expected {RESIDUAL} at most")
        new = Kivi(self.groups, self.recent.append(k, v, at), self.bits)
        return new if at.parent is not None else new.with_groups(*span_of(new.recent), at)

    def with_groups(self, k: jax.Array, v: jax.Array, at: Span) -> "Kivi":
        """Write the groups that are whole once k [b t g k] and v [b t g j] of a chain stand behind the ring."""
        first, end = at.start // GROUP, (at.start + at.n) // GROUP
        n_groups = (k.shape[1] + GROUP - 1) // GROUP
        slot, place = slots(at)[:, None], jnp.arange(n_groups * GROUP, dtype=jnp.int32)
        older = jnp.arange(GROUP, dtype=jnp.int32) + first[:, None] * GROUP
        n_older = at.start[:, None] % GROUP
        index = jnp.where(place < n_older, place, GROUP - n_older + place)  # of the ring's tokens, then the span's

        def tokens(ring: jax.Array, x: jax.Array) -> jax.Array:
            both = jnp.concatenate([ring[slot, :, older % ring.shape[2]], x], axis=1)
            x = jnp.take_along_axis(both, index[:, :, None, None], axis=1, mode="clip")
            return jnp.moveaxis(x.reshape(len(x), n_groups, GROUP, *x.shape[2:]), 2, 3)  # b n g o k

        k, v = tokens(self.recent.keys, k), tokens(self.recent.values, v)
        k, v = coded(jnp.swapaxes(k, 3, 4), GROUP, self.bits), coded(v, by_token(v.shape[4]), self.bits)
        k, v = (x.reshape(*x.shape[:3], -1) for x in (k, v))
        whole = Span.chain(first, end - first, n_groups, at.slot)
        return Kivi(self.groups.append(k, v, whole), self.recent, self.bits)

    def attend(self, q: jax.Array, at: Span, **options) -> tuple[jax.Array, "Kivi"]:
        """q [b t h k] -> y [b t h j] and the memory; window, softcap, scale, sinks as in the ops."""
        return attend_rows(q, self.parts(), at, **options), self

    def parts(self) -> list["Older | Newer"]:
        """Where its rows are to be found."""
        sizes = self.recent.keys.shape[3], self.recent.values.shape[3]
        return [Older(self.groups, self.bits, *sizes), *map(Newer, self.recent.parts())]

    def commit(self, at: Span, keep: jax.Array, n_keep: jax.Array) -> "Kivi":
        """Keep n_keep [b] tokens, those at indices keep [b m] of the span."""
        new = self
        if at.parent is not None:
            k, v = span_of(self.recent)
            index = jnp.clip(keep, 0, k.shape[1] - 1)[:, :, None, None]
            k, v = (jnp.take_along_axis(x, index, axis=1) for x in (k, v))
            new = self.with_groups(k, v, Span.chain(at.start, n_keep, keep.shape[1], at.slot))
        return Kivi(new.groups, self.recent.commit(at, keep, n_keep), self.bits)


@struct.dataclass
class Older:
    """The groups of a memory, a row for each of their tokens; keys of k channels, values of j."""

    groups: Contiguous
    bits: int = struct.field(pytree_node=False)
    k: int = struct.field(pytree_node=False)
    j: int = struct.field(pytree_node=False)

    def n_rows(self, at: Span) -> int:
        """Rows of each sequence."""
        return self.groups.values.shape[2] * GROUP

    def n_used(self, at: Span) -> jax.Array:
        """As many as the last query of any sequence sees coded."""
        return jnp.max(n_coded(at.start + at.n - 1))

    def rows(self, at: Span, first, size: int) -> Rows:
        """Rows first … first + size - 1 of the span's sequences, in float32."""
        whole, n_rows = at.start // GROUP, self.n_rows(at)
        n_groups = min(-(-size // GROUP) + 1, n_rows // GROUP)
        first_group = jnp.minimum(first // GROUP, n_rows // GROUP - n_groups)
        if at.parent is None:
            whole = (at.start + at.n) // GROUP
        held = self.groups.rows(Span.chain(whole, jnp.zeros_like(whole), 1, at.slot), first_group, n_groups)
        b, n, g, _ = held.k.shape
        k = decoded(held.k.reshape(b, n, g, self.k, -1), GROUP, GROUP, self.bits)
        v = decoded(held.v.reshape(b, n, g, GROUP, -1), self.j, by_token(self.j), self.bits)

        def of_tokens(x: jax.Array) -> jax.Array:
            x = jnp.moveaxis(x, 3, 2).reshape(b, n * GROUP, g, -1)
            return jax.lax.dynamic_slice_in_dim(x, first - first_group * GROUP, size, axis=1)

        row = first + jnp.arange(size, dtype=jnp.int32)
        pos = jnp.where(row < whole[:, None] * GROUP, row, -1)
        return Rows(of_tokens(jnp.swapaxes(k, 3, 4)), of_tokens(v), pos, pos[:, None] < n_coded(at.pos)[..., None])


@struct.dataclass
class Newer:
    """A memory's rows, to those who see them as they are."""

    memory: Any

    def n_rows(self, at: Span) -> int:
        """Rows of each sequence."""
        return self.memory.n_rows(at)

    def n_used(self, at: Span) -> Any:
        """How many of them, the first ones, may hold tokens."""
        return self.memory.n_used(at)

    def rows(self, at: Span, first, size: int) -> Rows:
        """Rows first … first + size - 1 of the span's sequences."""
        rows = self.memory.rows(at, first, size)
        mask = rows.pos[:, None] >= n_coded(at.pos)[..., None]
        return rows._replace(mask=mask if rows.mask is None else mask & rows.mask)


def n_coded(pos: jax.Array) -> jax.Array:
    """How many tokens, the first ones, a query at position `pos` sees coded: whole groups."""
    return jnp.maximum((pos + 1 - RESIDUAL) // GROUP, 0) * GROUP


def span_of(ring: Ring) -> tuple[jax.Array, jax.Array]:
    """The span's keys [b t g k] and values [b t g j]."""
    assert ring.span is not None, "append comes first"
    return ring.span


def by_token(j: int) -> int:
    """How many of a value's j channels share a scale."""
    return math.gcd(j, GROUP)


def width(n: int, group: int, bits: int) -> int:
    """Bytes of n numbers in groups."""
    return n * bits // 8 + n // group * PAIR


def coded(x: jax.Array, group: int, bits: int) -> jax.Array:
    """x [... n] -> int8 bytes [... width]: packed codes, then each group's scale, then its least number.

    The least number is rounded down, so that all others are above it: what is left of them is coded as
    `encode_ints` does affinely, where 0 is the least code.
    """
    groups = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, group)
    least = floored(jnp.min(groups, axis=-1))
    left = (groups - least[..., None].astype(jnp.float32)).reshape(x.shape)
    codes, scales, _ = encode_ints(left, f"int{bits}", group=group, affine=True)
    pairs = jnp.concatenate([scales.astype(jnp.bfloat16), least], axis=-1)
    pairs = jax.lax.bitcast_convert_type(pairs, jnp.int8).reshape(*x.shape[:-1], -1)
    return jnp.concatenate([jax.lax.bitcast_convert_type(pack(codes, bits), jnp.int8), pairs], axis=-1)


def decoded(row: jax.Array, n: int, group: int, bits: int) -> jax.Array:
    """int8 bytes [... width] -> float32 [... n]."""
    codes = unpack(jax.lax.bitcast_convert_type(row[..., : n * bits // 8], jnp.uint8), bits)
    pairs = row[..., n * bits // 8 :].reshape(*row.shape[:-1], 2, n // group, 2)
    pairs = jax.lax.bitcast_convert_type(pairs, jnp.bfloat16).astype(jnp.float32)
    scales, least = pairs[..., 0, :], pairs[..., 1, :, None]
    left = decode_ints(CodedInts(codes, scales, jnp.zeros(scales.shape, jnp.uint8)))
    return (left.reshape(*least.shape[:-1], group) + least).reshape(*row.shape[:-1], n)


def floored(x: jax.Array) -> jax.Array:
    """Float32 x [...] rounded down to bfloat16, which is its first 16 bits."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    bits = jnp.where(bits >> 31 == 1, bits + 0xFFFF, bits) >> 16
    return jax.lax.bitcast_convert_type(bits.astype(jnp.uint16), jnp.bfloat16)
