"""Sampling filters without sorting (definitions in `ref.py`): each one is a threshold on the logits.

Top-k and top-p keep "everything at or above the largest threshold that keeps enough". How much a threshold
keeps falls as it rises, so it is found by bisection over the bits of a float32: 32 counts or sums over the
vocabulary, a few times cheaper on a CPU than sorting it, and k and p may differ from row to row.

Results are in the logits' dtype, arithmetic in float32 or wider.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ..shapes import shaped, widened


@shaped("logits: b v float, temperature: b float")
def scale_temperature(logits: jax.Array, temperature: jax.Array) -> jax.Array:
    """Logits [b v] over temperature [b] > 0."""
    x = widened(logits)
    return (x / temperature.astype(x.dtype)[:, None]).astype(logits.dtype)


@shaped("logits: b v float, k: b int")
def keep_top_k(logits: jax.Array, k: jax.Array) -> jax.Array:
    """Keep the k [b] >= 1 largest of logits [b v], and all that equal the k-th."""
    order = ordered_bits(logits)
    threshold = largest_threshold(lambda bits: jnp.sum(order >= bits[:, None], axis=1, dtype=k.dtype) >= k, order)
    return jnp.where(order >= threshold[:, None], logits, -jnp.inf)


@shaped("logits: b v float, p: b float")
def keep_top_p(logits: jax.Array, p: jax.Array) -> jax.Array:
    """Keep the likeliest tokens of logits [b v] until their probability reaches p [b] in (0, 1]; 1 keeps all."""
    probability = jax.nn.softmax(widened(logits), axis=1)
    p = p.astype(probability.dtype)
    order = ordered_bits(probability)

    def mass(bits: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(order >= bits[:, None], probability, 0), axis=1)

    threshold = largest_threshold(lambda bits: mass(bits) >= p, order)
    kept = (order >= threshold[:, None]) | (p >= 1)[:, None]  # float32 sums reach 1 before the last token
    return jnp.where(kept, logits, -jnp.inf)


@shaped("logits: b v float, p: b float")
def keep_min_p(logits: jax.Array, p: jax.Array) -> jax.Array:
    """Keep tokens of logits [b v] with probability >= p [b] times the largest probability."""
    x = widened(logits)
    floor = jnp.max(x, axis=1) + jnp.log(p.astype(x.dtype))  # the softmax's denominator cancels
    return jnp.where(x >= floor[:, None], logits, -jnp.inf)


@shaped("logits: b v float, seen: b v bool, penalty: b float")
def penalise_repetition(logits: jax.Array, seen: jax.Array, penalty: jax.Array) -> jax.Array:
    """Shrink logits [b v] of tokens seen [b v]: positive ones divided by penalty [b], others multiplied."""
    x = widened(logits)
    penalty = penalty.astype(x.dtype)[:, None]
    return jnp.where(seen, jnp.where(x > 0, x / penalty, x * penalty), x).astype(logits.dtype)


@shaped("logits: b v float, counts: b v int, presence: b float, frequency: b float")
def penalise_counts(logits: jax.Array, counts: jax.Array, presence: jax.Array, frequency: jax.Array) -> jax.Array:
    """Subtract presence [b] once and frequency [b] per occurrence where counts [b v] > 0."""
    x = widened(logits)
    presence, frequency = presence.astype(x.dtype)[:, None], frequency.astype(x.dtype)[:, None]
    return jnp.where(counts > 0, x - (presence + frequency * counts.astype(x.dtype)), x).astype(logits.dtype)


def ordered_bits(x: jax.Array) -> jax.Array:
    """Floats -> integers in the same order: a negative float's bits grow as it falls, so they are mirrored."""
    x = widened(x)
    bits = jax.lax.bitcast_convert_type(x, jnp.int64 if x.dtype == np.float64 else jnp.int32)
    return jnp.where(bits >= 0, bits, jnp.iinfo(bits.dtype).min - bits)


def largest_threshold(keeps_enough: Callable[[jax.Array], jax.Array], like: jax.Array) -> jax.Array:
    """The largest integer [b] that still keeps enough, one bit at a time from the sign down.

    `keeps_enough` maps thresholds [b] to bool [b]; `like` [b v] has their dtype. Where nothing keeps enough the
    smallest integer is returned.
    """
    info = jnp.iinfo(like.dtype)

    def try_bit(index: jax.Array, threshold: jax.Array) -> jax.Array:
        candidate = threshold + (jnp.ones_like(threshold) << (info.bits - 2 - index).astype(like.dtype))
        return jnp.where(keeps_enough(candidate), candidate, threshold)

    smallest = jnp.full(len(like), info.min, like.dtype)
    sign = jnp.where(keeps_enough(jnp.zeros_like(smallest)), 0, smallest)
    return jax.lax.fori_loop(0, info.bits - 1, try_bit, sign)
