"""A model on a mesh: what each device runs, and all of it together.

Inside, every device runs an ordinary `Model` of its share (`rules.local`) by `jax.shard_map`. Outside, a `Spread`
has the methods of a `Model`, takes tokens and gives logits as one does, and can be jitted and donated like one.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import jax
import numpy as np
from flax import struct
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ..blocks import Mamba2
from ..blocks.params import Get, RMSNorm
from ..cache import StateSpec
from ..config import Config
from ..errors import UserError
from ..model import Model
from ..quant import Dense, as_stored, as_weights, is_weight
from ..span import Span
from .few_bits import cut_weight
from .mesh import DATA, EXPERT, MODEL, SEQ, AnyMesh, size_of
from .ring import check_can_deal, hidden_dealt, init_dealt
from .rules import Cut, Shape, cuts, local
from .weights import Head, OwnExperts, SharedMamba2, SharedRMSNorm, Summed, Vocabulary, for_whole_tokens


@struct.dataclass
class Spread:
    """A `Model` on a mesh.

    share    the model that each device runs; its arrays are those of all devices, cut as `specs` say, one a leaf
    specs    the mesh axes that cut each array
    """

    share: Model
    mesh: AnyMesh = struct.field(pytree_node=False)
    specs: tuple[P, ...] = struct.field(pytree_node=False)

    @property
    def embed(self) -> Any:
        """The embedding; its shape is (v, d)."""
        return self.share.embed

    @property
    def norm(self) -> Any:
        """The last norm."""
        return self.share.norm

    @property
    def head(self) -> Any:
        """The head, None where tied."""
        return self.share.head

    @property
    def blocks(self) -> tuple:
        """UserError: no device has any of them as a whole."""
        raise UserError("the model lies on a mesh, where no block is whole; to look into one, load it without")

    @property
    def shapes(self) -> "Spread":
        """The same with shapes in place of arrays, which say where the pieces lie."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), self)

    def init_state(self, spec: StateSpec) -> Any:
        """Empty memory, as in `Model`.

        Its arrays have sequences in their first dimension, which the axis `data` cuts where it divides them; in the
        second, what the other devices have lies one behind the other. So a cache [slots, g, s, k] looks as always.
        """
        shares, place = self._share_of_state(spec), self._sharding(self._memory(spec.slots))

        def all_shares(leaf: jax.Array) -> jax.Array:
            own = np.asarray(leaf)
            return jax.make_array_from_callback(self._whole(leaf, spec), place, lambda index: own)

        return jax.tree.map(all_shares, shares())

    def state_shapes(self, spec: StateSpec) -> Any:
        """The shapes of that memory, and where it lies."""
        shares, place = self._share_of_state(spec), self._sharding(self._memory(spec.slots))
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(self._whole(leaf, spec), leaf.dtype, sharding=place),
            jax.eval_shape(shares),
        )

    def hidden(self, tokens: jax.Array, state: Any, at: Span) -> tuple[jax.Array, Any]:
        """As in `Model`; what is proposed has a first dimension more, of devices."""
        self._check(state, at)
        read = hidden_dealt if size_of(self.mesh, SEQ) > 1 else Model.hidden

        def each(share: Model, tokens: jax.Array, state: Any, at: Span) -> tuple[jax.Array, Any]:
            hidden, pending = read(share, tokens, state, at)
            return hidden, jax.tree.map(lambda x: x[None], pending)

        b = len(tokens)
        into, out = (self._rows(b), self._memory(b), self._rows(b)), (self._rows(b), self._all)
        return self._on_each(each, into, out)(self.share, tokens, state, at)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """hidden [..., d] -> [..., v] in float32 or wider."""
        rows = self._rows(len(hidden)) if hidden.ndim > 1 else P()
        return self._on_each(lambda share, hidden: share.logits(hidden), (rows,), rows)(self.share, hidden)

    def __call__(self, tokens: jax.Array, state: Any, at: Span) -> tuple[jax.Array, Any]:
        """As in `Model`."""
        hidden, pending = self.hidden(tokens, state, at)
        return self.logits(hidden), pending

    def commit(self, pending: Any, at: Span, keep: jax.Array, n_keep: jax.Array) -> Any:
        """As in `Model`."""

        def each(share: Model, pending: Any, at: Span, keep: jax.Array, n_keep: jax.Array) -> Any:
            return share.commit(jax.tree.map(lambda x: x[0], pending), at, keep, n_keep)

        b = len(keep)
        into = (self._all, self._rows(b), self._rows(b), self._rows(b))
        return self._on_each(each, into, self._memory(b))(self.share, pending, at, keep, n_keep)

    def _on_each(self, function: Callable, into: tuple, out: Any) -> Callable:
        """A function on every device, of its share of the model and of its pieces of what else it takes."""
        share = jax.tree.unflatten(jax.tree.structure(self.share), self.specs)
        # What must be the same on all devices is so by construction. JAX's check of it would not let the loops in
        # blocks begin with constants.
        return jax.shard_map(function, mesh=self.mesh, in_specs=(share, *into), out_specs=out, check_vma=False)

    @property
    def _others(self) -> tuple[str, ...]:
        """The axes but `data`."""
        return tuple(axis for axis in self.mesh.axis_names if axis != DATA)

    @property
    def _all(self) -> P:
        """A first dimension that counts devices."""
        return P(self.mesh.axis_names)

    def _rows(self, b: int) -> P:
        """Arrays [b, …]: `data` divides sequences, or else all have all of them."""
        return P(DATA if DATA in self.mesh.shape and b % size_of(self.mesh, DATA) == 0 else None)

    def _memory(self, slots: int) -> P:
        """Memory of so many sequences."""
        return P(*self._rows(slots), self._others)

    def _sharding(self, spec: P) -> NamedSharding:
        return NamedSharding(self.mesh, spec)

    def _share_of_state(self, spec: StateSpec) -> Callable[[], Any]:
        """What makes one device's memory."""
        n = size_of(self.mesh, DATA)
        if n > 1 and spec.kind == "paged":
            raise UserError(f"mesh has {DATA}={n}, which cannot divide memory in pages; leave the axis out")
        spec = replace(spec, slots=spec.slots // n if spec.slots % n == 0 else spec.slots)
        devices = size_of(self.mesh, SEQ)
        return lambda: init_dealt(self.share, spec, devices) if devices > 1 else self.share.init_state(spec)

    def _whole(self, leaf: Any, spec: StateSpec) -> tuple[int, ...]:
        """The shape of all devices' memory together."""
        first, n = leaf.shape[0], size_of(self.mesh, DATA)
        return (first * (n if spec.slots % n == 0 else 1), leaf.shape[1] * self.mesh.size // n, *leaf.shape[2:])

    def _check(self, state: Any, at: Span) -> None:
        """UserError if sequences are picked from memory that `data` divides."""
        n = size_of(self.mesh, DATA)
        if state is not None and n > 1 and (at.slot is not None or at.pages is not None):
            raise UserError(
                f"mesh has {DATA}={n}, which divides sequences by their order, but these are picked by slots or "
                "pages, as the engine does; leave the axis out"
            )


def spread(config: Config, mesh: AnyMesh, get: Get) -> Spread:
    """The model a config describes, on a mesh; `get` as in `Model.build`.

    What it delivers need only have slices: of an array, or of something that reads them, no process takes more
    than its devices hold. A `ShapeDtypeStruct` becomes one that says where the pieces lie, and a weight in few bits
    may have such things for its parts. UserError if the mesh does not divide the model.
    """
    if size_of(mesh, SEQ) > 1:
        check_can_deal(config)
    found, arrays = cuts(config, mesh), {}

    def take(name: str, layer: int | None, *shapes: Shape, init: Any) -> None:
        source, cut = get(name, layer, *shapes, init=init), found[name, layer]

        def place(source: Any, cut: Cut) -> Placed:
            return Placed(name, cut, placed(source, cut))

        where = name if layer is None else f"{name} of layer {layer}"
        arrays[name, layer] = cut_weight(source, cut, where, place) if is_weight(source) else place(source, cut)

    Model.build(config, take)
    share = as_weights(Model.build(local(config, mesh), lambda name, layer, *shapes, init: arrays[name, layer]))
    share = with_collectives(share, config, mesh)
    specs = tuple(leaf.cut.spec for leaf in jax.tree.leaves(share))
    return Spread(jax.tree.map(lambda leaf: leaf.array, share), mesh, specs)


def answers(model: Any, config: Config) -> Get:
    """What delivers the parameters of a model that is whole, as `Model.build` asks for them."""

    def named(name: str, layer: int | None, *shapes: Shape, init: Any) -> str:
        return f"{name} of layer {layer}"

    asked, given = (jax.tree.leaves(one, is_leaf=is_weight) for one in (Model.build(config, named), model))
    found: dict[Any, Any] = {}
    for one, leaf in zip(asked, given, strict=True):
        name: Any = one.array if isinstance(one, Dense) else one
        found[name] = as_stored(one, leaf) if isinstance(one, Dense) else leaf
    return lambda name, layer, *shapes, init: found[named(name, layer, init=init)]


@dataclass(eq=False)
class Placed:
    """An array on the mesh, or its shape, with the name of the parameter that it is and how it was cut."""

    name: str
    cut: Cut
    array: Any


def placed(source: Any, cut: Cut) -> Any:
    """The pieces of a parameter, each on the device that holds it."""
    sharding = NamedSharding(cut.mesh, cut.spec)
    if isinstance(source, jax.Array) and source.sharding == sharding:
        return source
    if isinstance(source, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(cut.whole, source.dtype, sharding=sharding)

    @cache
    def piece(*starts: int) -> np.ndarray:  # what several devices hold is read once
        places = {
            axis: start // size for axis, start, size in zip(cut.axes, starts, cut.shape, strict=True) if axis
        }
        return cut.read(source, places)

    return jax.make_array_from_callback(
        cut.whole, sharding, lambda index: piece(*(one.start or 0 for one in index or ()))
    )


def with_collectives(share: Any, config: Config, mesh: AnyMesh) -> Any:
    """A device's model, its parameters `Placed`, with what sums and gathers where they were cut."""
    n, specs = size_of(mesh, MODEL), [spec for layer in config.layers for spec in layer]
    blocks = tuple(
        SharedMamba2.like(block, MODEL, n // spec.g) if isinstance(block, Mamba2) and spec.g < n else block
        for block, spec in zip(share.blocks, specs, strict=True)
    )
    share = share.replace(blocks=jax.tree.map(joined, blocks, is_leaf=is_part))
    if n == 1:
        return share
    head = None if share.head is None else Head(share.head, config.v, MODEL)
    return share.replace(embed=Vocabulary(share.embed, config.v, MODEL), head=head)


def is_part(node: Any) -> bool:
    """Whether a part of a block may have to be joined."""
    return is_weight(node) or isinstance(node, RMSNorm)


def joined(node: Any) -> Any:
    """A weight or norm of a block, with what makes it whole where the mesh cuts it."""
    if isinstance(node, RMSNorm):
        weight: Any = node.weight
        return SharedRMSNorm(weight, node.eps, MODEL) if MODEL in weight.cut.axes else node
    if not is_weight(node):
        return node
    parameter, *_ = jax.tree.leaves(node)
    axes, weight, summed = parameter.cut.axes, node, ()
    if axes[-1] == MODEL:  # its inputs are cut
        weight, summed = for_whole_tokens(node, MODEL), (MODEL,)
    if axes[0] == EXPERT:
        weight = OwnExperts(weight, EXPERT)
        summed = (EXPERT, *summed) if parameter.name == "moe.down" else summed  # the last of an expert's matrices
    return Summed(weight, summed) if summed else weight
