"""Products with a stack of matrices, one for each group of rows: what the experts of a layer are made of.

Rows come sorted by group. They are cut into tiles that begin in one group each, and every tile is multiplied by its
group's matrix where that lies, one tile after the other. So the matrices of groups without rows are never read,
which is what makes a step of decoding cheap, and no row is dropped or padded to the size of the largest group.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MOST_ROWS = 64  # of a tile; more gain nothing on a CPU


def grouped_product(x: jax.Array, weight: Any, sizes: jax.Array) -> jax.Array:
    """x [rows, in], weight of e matrices [in, out], sizes i32 [e] -> [rows, out]; see `quant` for what it means."""
    height, ends = tile_height(len(x), len(sizes)), jnp.cumsum(sizes)
    padded = jnp.pad(x, ((0, height), (0, 0)))

    def step(y: jax.Array, row: jax.Array, group: jax.Array) -> jax.Array:
        part = jax.lax.dynamic_slice_in_dim(padded, row, height) @ one_of(weight, group)
        return jax.lax.dynamic_update_slice_in_dim(y, part, row, 0)  # the next group overwrites what is too much

    y = for_tiles(sizes, height, step, jnp.zeros((len(x) + height, weight.shape[1]), x.dtype))[: len(x)]
    return jnp.where(jnp.arange(len(x), dtype=jnp.int32)[:, None] < ends[-1], y, 0)


def grouped_gradient(x: jax.Array, dy: jax.Array, sizes: jax.Array) -> jax.Array:
    """Sum of x_j^T dy_j over the rows j of each group: [rows, in], [rows, out] -> [e, in, out] f32 or wider."""
    height, ends = tile_height(len(x), len(sizes)), jnp.cumsum(sizes)
    x, dy = (jnp.pad(rows, ((0, height), (0, 0))) for rows in (x, dy))
    wide = np.promote_types(x.dtype, np.float32)

    def step(dw: jax.Array, row: jax.Array, group: jax.Array) -> jax.Array:
        inside = (row + jnp.arange(height, dtype=jnp.int32) < ends[group])[:, None]
        a, b = (jnp.where(inside, jax.lax.dynamic_slice_in_dim(rows, row, height), 0) for rows in (x, dy))
        return dw.at[group].add(jnp.matmul(a.T, b, preferred_element_type=wide))

    return for_tiles(sizes, height, step, jnp.zeros((len(sizes), x.shape[1], dy.shape[1]), wide))


def for_tiles(sizes: jax.Array, height: int, step: Callable[..., jax.Array], init: jax.Array) -> jax.Array:
    """init after step(it, row, group) for each tile: `height` rows from `row` on, of which the first is group's."""
    tiles = -(-sizes // height)  # of each group
    tiles_end, rows_end = jnp.cumsum(tiles), jnp.cumsum(sizes)

    def body(tile: jax.Array, it: jax.Array) -> jax.Array:
        group = jnp.sum(tiles_end <= tile, dtype=jnp.int32)
        earlier = tile - (tiles_end[group] - tiles[group])  # of the same group
        return step(it, rows_end[group] - sizes[group] + height * earlier, group)

    return jax.lax.fori_loop(0, tiles_end[-1], body, init)


def tile_height(rows: int, groups: int) -> int:
    """Rows of a tile: as many as an average group has, as a power of two."""
    return min(1 << max((rows // groups).bit_length() - 1, 0), MOST_ROWS)


def one_of(weight: Any, group: jax.Array) -> Any:
    """The matrix of one group, as a weight of the same class."""
    return jax.tree.map(lambda array: jax.lax.dynamic_index_in_dim(array, group, keepdims=False), weight)
