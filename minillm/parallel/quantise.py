"""A model that lies on a mesh, with its matrices in few bits: every device rounds what it has.

What comes of it is, to the bit, what rounding whole matrices would give. Where a scale belongs to more numbers than
a device has, devices first tell each other the least and the largest of theirs, and a piece is rounded with these
beside it.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..blocks.params import stacked
from ..config import Config
from ..model import Model
from ..quant import is_weight
from ..quant.dynamic import BESIDE
from ..quant.quantised import Change, Progress, quantised, rounded
from ..quant.recipes import Recipe
from ..quant.rules import Rule
from ..quant.storage import Reach
from .few_bits import check_units
from .mesh import MODEL
from .model import Spread, answers, spread

ACROSS: dict[Reach, tuple[int, ...]] = {"group": (), "row": (-1,), "tensor": (-2, -1), None: (-2, -1)}


def quantised_on_mesh(
    model: Spread, config: Config, rules: Sequence[Rule], progress: Progress
) -> tuple[Spread, list[Change]]:
    """As `quant.quantised`; UserError also for what cannot be rounded in pieces."""
    plain = Model.build(config, lambda name, layer, *shapes, init: stacked(shapes))
    tree = jax.tree.structure(plain, is_leaf=is_weight)
    whole = jax.tree.unflatten(tree, jax.tree.leaves(model.share, is_leaf=is_weight))
    few, changes = quantised(whole, rules, lambda rule: rounded_in_pieces, progress)
    return spread(config, model.mesh, answers(few, config)), changes


def rounded_in_pieces(place: str, matrix: Any, recipe: Recipe) -> tuple[tuple[jax.Array, ...], None, None]:
    """As `quant.quantised.rounded`, of matrices [..., rows, columns] in pieces."""
    *_, mine = matrix.sharding.shard_shape(matrix.shape)
    check_units("the matrix", mine, matrix.shape[-1], recipe.storage.multiple)
    told = with_ends(matrix, recipe.storage.reach)

    def without_ends(piece: jax.Array) -> list[np.ndarray]:
        parts, _, _ = rounded(place, piece, recipe)
        return [part[..., : max(part.shape[-1] * mine // piece.shape[-1], 1)] for part in parts]

    shards = told.addressable_shards
    pieces = {str(shard.index): shard.data for shard in shards}  # several devices may hold the same
    coded = {index: without_ends(piece) for index, piece in pieces.items()}
    counts = np.array(told.shape) // told.sharding.shard_shape(told.shape)

    def joined(p: int) -> jax.Array:
        arrays = [jax.device_put(coded[str(shard.index)][p], shard.device) for shard in shards]
        shape = tuple(int(size) for size in counts * arrays[0].shape)
        return jax.make_array_from_single_device_arrays(shape, matrix.sharding, arrays)

    return tuple(joined(p) for p in range(len(coded[str(shards[0].index)]))), None, None


def with_ends(matrix: jax.Array, reach: Reach) -> jax.Array:
    """A matrix in pieces, each with `BESIDE` columns more that hold the ends of all numbers its scales belong to.

    Where no scale reaches beyond a piece it stays as it is. ValueError if ends are not enough.
    """
    sharding: Any = matrix.sharding
    axes = ACROSS[reach]
    names = tuple(sharding.spec[axis] for axis in axes if sharding.spec[axis] is not None)
    if not names:
        return matrix
    if reach is None:
        raise ValueError(
            f"mesh has {MODEL}={sharding.mesh.shape[MODEL]}, and scales are made of numbers of several devices; do "
            "it without a mesh, by minillm quantize, and load that"
        )

    def each(piece: jax.Array) -> jax.Array:
        least = jax.lax.pmin(jnp.min(piece, axes, keepdims=True), names)
        most = jax.lax.pmax(jnp.max(piece, axes, keepdims=True), names)
        ends = jnp.repeat(jnp.concatenate([least, most], axis=-1), BESIDE // 2, axis=-1)
        return jnp.concatenate([piece, jnp.broadcast_to(ends, (*piece.shape[:-1], BESIDE))], axis=-1)

    mesh, spec = sharding.mesh, sharding.spec
    return jax.jit(jax.shard_map(each, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))(matrix)
