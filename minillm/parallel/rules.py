"""What each axis of a mesh divides: a table of letters, and what follows from it for configs and parameters.

The axis `model` divides heads and channels (Shoeybi et al. 2019, arXiv:1909.08053): the first matrices of a layer
are cut by columns, the last by rows, and between them no device needs anything of another. The axis `expert`
divides the experts of a layer. Nobody lists the parameters: a block built for fewer heads asks for smaller ones,
and the dimension in which they differ is the one that is cut.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jax.sharding import PartitionSpec as P

from ..blocks import (
    AttentionSpec,
    GatedDeltaSpec,
    LatentAttentionSpec,
    Mamba2Spec,
    MambaSpec,
    MLPSpec,
    MoESpec,
)
from ..config import Config
from ..errors import UserError
from ..model import Model
from .mesh import EXPERT, MODEL, AnyMesh, size_of

Shape = tuple[int, ...]

# Which sizes of a block the axis `model` divides. All heads of a group read one KV head, or one B and C of Mamba-2:
# there may be fewer of those than devices, and several hold the same one.
DIVIDED: dict[type, tuple[str, ...]] = {
    AttentionSpec: ("h", "g"),
    LatentAttentionSpec: ("h",),
    MLPSpec: ("f",),
    MoESpec: ("f", "f_shared"),
    MambaSpec: ("i",),
    Mamba2Spec: ("h", "g"),
    GatedDeltaSpec: ("h", "g"),
}
SHARED = "g"

# Parameters in which several things stand side by side, each to be cut by itself, where what `build` asks for does
# not say so: their sizes.
SIDE_BY_SIDE: dict[str, Callable[[Any], Sequence[int]]] = {
    "attention.qkv": lambda s: [s.h * s.k] * (2 if s.gated else 1) + [s.g * s.k] * 2,
    "moe.gate_up": lambda s: [s.f] * 2,
    "delta.qkvz": lambda s: [s.g * s.k] * 2 + [s.h * s.j] * 2,
    "delta.conv": lambda s: [s.g * s.k] * 2 + [s.h * s.j],
    "mamba2.z_xBC_dt": lambda s: [s.i, s.i, s.g * s.n, s.g * s.n, s.h],
    "mamba2.conv": lambda s: [s.i, s.g * s.n, s.g * s.n],
}
OWNERS = {"attention": AttentionSpec, "moe": MoESpec, "delta": GatedDeltaSpec, "mamba2": Mamba2Spec}


def local(config: Config, mesh: AnyMesh) -> Config:
    """The config of what one device of the mesh runs; UserError if a size cannot be divided.

    Experts are the exception: every device routes tokens among all of them, so e stays as it is.
    """
    n, experts = size_of(mesh, MODEL), size_of(mesh, EXPERT)
    if experts > 1 and not any(isinstance(spec, MoESpec) for layer in config.layers for spec in layer):
        raise UserError(
            f"mesh has {EXPERT}={experts}, but no layer of {config.arch} has experts; leave the axis out"
        )
    if n > config.v:
        raise UserError(f"mesh has {MODEL}={n}, more than the v = {config.v} tokens of {config.arch}; take fewer")
    layers = tuple(
        tuple(local_spec(spec, n, experts, f"layer {i} of {config.arch}") for spec in layer)
        for i, layer in enumerate(config.layers)
    )
    return replace(config, layers=layers, v=-(-config.v // n))  # the last device may have fewer tokens


def local_spec(spec: Any, n: int, experts: int, where: str) -> Any:
    """The description of a block as one of n devices has it."""
    where, sizes = f"{where}, {type(spec).__name__.removesuffix('Spec')}", {}
    if isinstance(spec, MoESpec) and spec.e % experts:
        raise UserError(f"mesh has {EXPERT}={experts}, which does not divide the e = {spec.e} experts of {where}")
    if n > 1 and type(spec) not in DIVIDED:
        raise UserError(f"mesh has {MODEL}={n}, and nothing says how that divides {where}; leave the axis out")
    for letter in DIVIDED[type(spec)] if n > 1 else ():
        size = getattr(spec, letter)
        if size % n and not (letter == SHARED and n % size == 0):
            raise UserError(f"mesh has {MODEL}={n}, which does not divide {letter} = {size} of {where}")
        sizes[letter] = -(-size // n)
    return replace(spec, **sizes)


@dataclass(frozen=True)
class Cut:
    """How a parameter lies on a mesh.

    shape    of what one device holds
    axes     for each dimension the mesh axis that cuts it, or None
    sizes    along the dimension that `model` cuts: of each thing that stands there, the whole size and a device's
    """

    mesh: AnyMesh
    shape: Shape
    axes: tuple[str | None, ...]
    sizes: tuple[tuple[int, int], ...] = ()

    @staticmethod
    def of(
        name: str, layers: tuple[Any, Any], whole: tuple[Shape, ...], piece: tuple[Shape, ...], mesh: AnyMesh
    ) -> "Cut":
        """The cut of a parameter from the shapes that its parts have as a whole and on one device.

        layers are the descriptions of its layer's blocks, whole and on one device.
        """
        differ = [d for d in range(len(whole[0])) if any(a[d] != b[d] for a, b in zip(whole, piece, strict=True))]
        axes: list[str | None] = [MODEL if d in differ else None for d in range(len(whole[0]))]
        shape = [sum(part[0] for part in piece), *piece[0][1:]]
        if len(shape) == 3 and size_of(mesh, EXPERT) > 1:  # matrices of experts, and nothing else, have three
            axes[0], shape[0] = EXPERT, shape[0] // size_of(mesh, EXPERT)
        if not differ:
            return Cut(mesh, tuple(shape), tuple(axes))
        (dim,), key = differ, name.removesuffix(".bias")
        if key in SIDE_BY_SIDE:
            owner = OWNERS[name.partition(".")[0]]
            both = (next(one for one in layer if isinstance(one, owner)) for layer in layers)
            sizes = zip(*(SIDE_BY_SIDE[key](one) for one in both), strict=True)
        else:
            some = len(whole) if dim == 0 else 1
            sizes = ((a[dim], b[dim]) for a, b in zip(whole[:some], piece[:some], strict=True))
        return Cut(mesh, tuple(shape), tuple(axes), tuple(sizes))

    @property
    def spec(self) -> P:
        """The same for JAX."""
        return P(*self.axes)

    @property
    def whole(self) -> Shape:
        """The shape of all pieces side by side, which may be more than was asked for."""
        return tuple(
            size if axis is None else size * size_of(self.mesh, axis)
            for size, axis in zip(self.shape, self.axes, strict=True)
        )

    def read(self, source: Any, places: dict[str, int]) -> np.ndarray:
        """What the device at these places along the axes holds of source, which need only be sliced.

        Rows that a vocabulary has not are zeros.
        """
        index = [slice(None)] * len(self.shape)
        if EXPERT in self.axes:
            first = places[EXPERT] * self.shape[0]
            index[0] = slice(first, first + self.shape[0])
        if MODEL not in self.axes:
            return source[tuple(index)]
        dim, n = self.axes.index(MODEL), size_of(self.mesh, MODEL)
        offset, pieces = 0, []
        for size, mine in self.sizes:
            different = size // mine if n * mine > size and size % mine == 0 and n % (size // mine) == 0 else n
            first = offset + places[MODEL] * different // n * mine  # several devices may hold the same
            index[dim] = slice(first, min(first + mine, offset + size))
            pieces.append(source[tuple(index)])
            offset += size
        found = np.concatenate(pieces, axis=dim) if len(pieces) > 1 else pieces[0]
        missing = [(0, a - b) for a, b in zip(self.shape, found.shape, strict=True)]
        return np.pad(found, missing) if any(after for _, after in missing) else found


def cuts(config: Config, mesh: AnyMesh) -> dict[tuple[str, int | None], Cut]:
    """How each parameter of a model lies on a mesh, by its name and layer; UserError as of `local`."""
    mine, asked, found = local(config, mesh), {}, {}

    def ask(name: str, layer: int | None, *shapes: Shape, init: Any) -> None:
        asked[name, layer] = shapes

    def compare(name: str, layer: int | None, *shapes: Shape, init: Any) -> None:
        layers = ((), ()) if layer is None else (config.layers[layer], mine.layers[layer])
        found[name, layer] = Cut.of(name, layers, shapes, asked[name, layer], mesh)

    Model.build(mine, ask)
    Model.build(config, compare)
    return found
