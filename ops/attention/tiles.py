"""Which tiles of the t x s matrix of scores a kernel must visit: known from positions before any score is."""

import jax
import jax.numpy as jnp

from ..tiles import fill_up


def visible_tiles(
    q_pos: jax.Array, k_pos: jax.Array, t_block: int, s_block: int, *, causal: bool, window: int | None
) -> jax.Array:
    """Bool [b m n]: may a query of tile m of q_pos [b t] see a key of tile n of k_pos [b s]?

    False is certain, True is not: a tile is known by its least and its largest position, and by nothing else.
    """
    q_least, q_most = (x[:, :, None] for x in extremes(q_pos, t_block))
    k_least, k_most = (x[:, None] for x in extremes(k_pos, s_block))
    visible = (q_most >= 0) & (k_most >= 0)
    if causal:
        visible &= k_least <= q_most
    if window is not None:
        visible &= (k_most > q_least - window) & (k_least < q_most + window)
    return visible


def extremes(pos: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """The least and the largest position in each tile [b n] of positions [b s]; without a token -1 is largest."""
    pos = fill_up(pos, 1, size, -1).reshape(pos.shape[0], -1, size)
    least = jnp.min(jnp.where(pos < 0, jnp.iinfo(pos.dtype).max, pos), axis=2)
    return least, jnp.maximum(jnp.max(pos, axis=2), -1)
