"""The two programs of a generation, `generate.advance` over a chunk of the prompt and over one token, from shapes.

Weights need not exist. A model is a pytree of shapes that say which devices they lie on, and memory and tokens are
given shapes to match, so that the programs are those that would run.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from ..archs import find_hf
from ..blocks.params import stacked
from ..cache import StateSpec
from ..checkpoint.jsonfile import read_json
from ..config import Config, Fields
from ..errors import UserError
from ..generate import CHUNK, advance
from ..model import Model
from ..parallel import Spread, answers, new_mesh, spread
from ..parallel.mesh import DATA, parsed, size_of
from ..quant import Dense, by_place, in_dtype, is_weight
from ..quant.quantised import STAY
from ..quant.recipes import weight_like
from ..quant.rules import check_used, read_rules, rule_for
from ..sampling import Sampler
from .topology import devices


@dataclass(frozen=True)
class Work:
    """What is to be done: so many sequences at once, each of which ends with `context` tokens."""

    batch: int
    context: int

    @property
    def chunk(self) -> int:
        """Tokens of each prompt that one program reads."""
        return min(CHUNK, 1 << self.context.bit_length() - 1)


def config_in(path: Path) -> Config:
    """The config that a config.json describes; UserError says what is wrong with it."""
    values = read_json(path)
    return find_hf(values.get("model_type"), f"{path}: model_type").config_from_hf(Fields(values, str(path)))


def shapes_of(config: Config) -> Model:
    """The model of a config, shapes in place of weights."""
    return Model.build(config, lambda name, layer, *shapes, init: stacked(shapes))


def in_few_bits(shapes: Model, rules: str) -> Model:
    """The shapes with matrices stored as rules say (`quant.rules`); UserError if one fits none, or is a method."""
    leaves, tree = by_place(shapes)
    wanted = read_rules(rules)
    check_used(wanted, [place for place, leaf in leaves if is_weight(leaf)])
    return tree.unflatten([stored(place, leaf, rule_for(place, wanted)) for place, leaf in leaves])


def stored(place: str, leaf: Any, rule: Any) -> Any:
    """One part of a model as a rule says."""
    if not isinstance(leaf, Dense) or rule is None or rule.recipe is None or STAY.search(place):
        return leaf
    if rule.method is not None:
        raise UserError(f"--quant names the method {rule.method}, which changes no size; leave it out")
    rows, columns = leaf.array.shape[:-1], leaf.array.shape[-1]
    recipe = rule.recipe.for_rows_of(columns)
    return leaf if recipe is None else weight_like(recipe, rows, columns, leaf.transposed, jax.ShapeDtypeStruct)


def narrowed(shapes: Model, dtype: str) -> Model:
    """The shapes with plain parameters in another floating-point type."""
    return jax.tree.map(lambda leaf: leaf if is_coded(leaf) else in_dtype(leaf, dtype), shapes, is_leaf=is_coded)


def is_coded(leaf: Any) -> bool:
    """Whether a part of a model is a weight in few bits."""
    return is_weight(leaf) and not isinstance(leaf, Dense)


def on_devices(shapes: Model, config: Config, target: str, mesh: str | None, real: bool) -> tuple[Any, int, Any]:
    """The shapes as they lie on devices of a target, how many those are, and where tokens go.

    Unless they are `real` enough to compile for, the devices have no more than a number. UserError if the mesh does
    not divide the model, or there are not so many devices.
    """
    if mesh is None:
        place = SingleDeviceSharding(devices(target)[0]) if real else None
        return placed(shapes, place), 1, place
    sizes = parsed(mesh)
    count = math.prod(sizes.values())
    if real:
        grid: Any = new_mesh(mesh, devices(target, count))
    else:
        grid = AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
    return spread(config, grid, answers(shapes, config)), count, NamedSharding(grid, P())


def placed(tree: Any, sharding: Any) -> Any:
    """Shapes that say where they lie."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def traced(model: Any, work: Work, tokens: int, sharding: Any) -> Any:
    """`advance` over so many tokens of each sequence as a `jax.stages.Traced`; the next token is the likeliest."""
    number = jax.ShapeDtypeStruct((work.batch,), np.int32, sharding=sharding)
    seed: Any = jax.ShapeDtypeStruct((work.batch,), np.uint32, sharding=sharding)
    sampler = Sampler(*[None] * 7, seed=seed)
    row = jax.ShapeDtypeStruct((work.batch, tokens), np.int32, sharding=sharding)
    return advance.trace(model, state_of(model, work, sharding), None, sampler, row, number, number)


def state_of(model: Any, work: Work, sharding: Any) -> Any:
    """The shapes of a model's memory, and where it lies.

    They are those of memory for few sequences, multiplied: asking for the shapes of many would ask the machine here
    for the room, even if nothing is written there.
    """
    n = size_of(model.mesh, DATA) if isinstance(model, Spread) else 1
    few = n if work.batch % n == 0 else 1
    spec = StateSpec(slots=few, max_len=work.context)
    if isinstance(model, Spread):
        state = model.state_shapes(spec)
    else:
        state = placed(jax.eval_shape(lambda: model.init_state(spec)), sharding)

    def for_all(leaf: Any) -> Any:
        shape = leaf.shape[0] * work.batch // few, *leaf.shape[1:]
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=leaf.sharding)

    return jax.tree.map(for_all, state)


def bytes_a_device(tree: Any) -> int:
    """Bytes of all arrays of a pytree of shapes that one device holds."""
    return sum(math.prod(on_one(leaf)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def on_one(leaf: Any) -> Sequence[int]:
    """The shape of what one device holds of an array."""
    return leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
