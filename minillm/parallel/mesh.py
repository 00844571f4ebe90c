"""Meshes: devices in rows and columns whose axes have names."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from ..errors import UserError

DATA, MODEL, EXPERT, SEQ = "data", "model", "expert", "seq"
AnyMesh: TypeAlias = Mesh | AbstractMesh  # an abstract one has sizes, and no devices
AXES = (DATA, MODEL, EXPERT, SEQ)
PRETEND = "XLA_FLAGS=--xla_force_host_platform_device_count"


def new_mesh(axes: str, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh such as "data=2,model=4": eight devices, of which two groups of four have a copy of the model each.

    data      divides sequences
    model     divides heads, channels and the vocabulary: every matrix is in pieces
    expert    divides the experts of a layer
    seq       divides the tokens of a sequence

    The devices are those of this machine, the first ones if there are more. UserError if the text is no mesh, or
    asks for more devices than there are.
    """
    sizes = parsed(axes)
    there, needed = list(jax.devices() if devices is None else devices), 1
    for size in sizes.values():
        needed *= size
    if needed > len(there):
        hint = f"; to try it without them, set {PRETEND}={needed}" if there[0].platform == "cpu" else ""
        raise UserError(f"mesh {axes} is of {needed} devices, but there are {len(there)}{hint}")
    kinds = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=kinds, devices=there[:needed])


def parsed(axes: str) -> dict[str, int]:
    """The size of each axis by its name, in the order given."""
    sizes: dict[str, int] = {}
    for axis in axes.split(","):
        name, _, size = axis.strip().partition("=")
        whole = size.isascii() and size.isdecimal() and len(size) < 7 and int(size) >= 1
        if name not in AXES or name in sizes or not whole:
            raise UserError(
                f"mesh is {axes!r}, expected axes and sizes such as data=2,model=4, of {', '.join(AXES)}"
            )
        sizes[name] = int(size)
    return sizes


def size_of(mesh: AnyMesh, axis: str) -> int:
    """How many pieces an axis makes, 1 if the mesh has none of that name."""
    return mesh.shape.get(axis, 1)
