"""Sampling filters without sorting (definitions in `ref.py`): each one is a threshold on the logits.

Top-k and top-p keep "everything at or above the largest threshold that keeps enough". How much a threshold
keeps falls as it rises, so it is found by bisection over the bits of a float32: 32 counts or sums over the
vocabulary, a few times cheaper on a CPU than sorting it, and k and p may differ from row to row.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ..shapes import shaped


@shaped("logits: b v float, temperature: b float")
def scale_temperature(logits: jax.Array, temperature: jax.Array) -> jax.Array:
    """Logits [b v] over temperature [b] > 0."""
    return logits / temperature[:, None]


@shaped("logits: b v float, k: b int")
def keep_top_k(logits: jax.Array, k: jax.Array) -> jax.Array:
    """Keep the k [b] >= 1 largest of logits [b v], and all that equal the k-th."""
    order = ordered_bits(logits)
    threshold = largest_threshold(lambda bits: jnp.sum(order >= bits[:, None], axis=1) >= k, len(k))
    return jnp.where(order >= threshold[:, None], logits, -jnp.inf)


@shaped("logits: b v float, p: b float")
def keep_top_p(logits: jax.Array, p: jax.Array) -> jax.Array:
    """Keep the likeliest tokens of logits [b v] until their probability reaches p [b] in (0, 1]; 1 keeps all."""
    probability = jax.nn.softmax(logits, axis=1)
    order = ordered_bits(probability)

    def mass(bits: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(order >= bits[:, None], probability, 0), axis=1)

    threshold = largest_threshold(lambda bits: mass(bits) >= p, len(p))
    kept = (order >= threshold[:, None]) | (p >= 1)[:, None]  # float32 sums reach 1 before the last token
    return jnp.where(kept, logits, -jnp.inf)


@shaped("logits: b v float, p: b float")
def keep_min_p(logits: jax.Array, p: jax.Array) -> jax.Array:
    """Keep tokens of logits [b v] with probability >= p [b] times the largest probability."""
    floor = jnp.max(logits, axis=1) + jnp.log(p)  # the softmax's denominator cancels
    return jnp.where(logits >= floor[:, None], logits, -jnp.inf)


@shaped("logits: b v float, seen: b v bool, penalty: b float")
def penalise_repetition(logits: jax.Array, seen: jax.Array, penalty: jax.Array) -> jax.Array:
    """Shrink logits [b v] of tokens seen [b v]: positive ones divided by penalty [b], others multiplied."""
    shrunk = jnp.where(logits > 0, logits / penalty[:, None], logits * penalty[:, None])
    return jnp.where(seen, shrunk, logits)


@shaped("logits: b v float, counts: b v int, presence: b float, frequency: b float")
def penalise_counts(logits: jax.Array, counts: jax.Array, presence: jax.Array, frequency: jax.Array) -> jax.Array:
    """Subtract presence [b] once and frequency [b] per occurrence where counts [b v] > 0."""
    cost = presence[:, None] + frequency[:, None] * counts.astype(logits.dtype)
    return jnp.where(counts > 0, logits - cost, logits)


def ordered_bits(x: jax.Array) -> jax.Array:
    """Float32 -> int32 in the same order: a negative float's bits grow as it falls, so they are mirrored."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    return jnp.where(bits >= 0, bits, jnp.iinfo(jnp.int32).min - bits)


def largest_threshold(keeps_enough: Callable[[jax.Array], jax.Array], b: int) -> jax.Array:
    """The largest int32 [b] that still keeps enough, one bit at a time from the sign down.

    `keeps_enough` maps thresholds i32 [b] to bool [b]. Where nothing keeps enough the smallest int32 is returned.
    """

    def try_bit(index: jax.Array, threshold: jax.Array) -> jax.Array:
        candidate = threshold + (jnp.int32(1) << (jnp.int32(30) - index))
        return jnp.where(keeps_enough(candidate), candidate, threshold)

    smallest = jnp.full(b, jnp.iinfo(jnp.int32).min, jnp.int32)
    sign = jnp.where(keeps_enough(jnp.zeros_like(smallest)), 0, smallest)
    return jax.lax.fori_loop(0, 31, try_bit, sign)
