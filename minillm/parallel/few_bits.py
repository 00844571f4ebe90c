"""Weights in few bits on a mesh: every part of one, its codes and its scales, is cut where the matrix is.

Rows of a matrix are rows of all its parts, so outputs are cut as those of plain numbers. Inputs are cut between the
groups and blocks that are coded together; whatever a row has only once, like its scale, all devices have that hold
some of the row.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..errors import UserError
from ..quant.dynamic import Dynamic
from ..quant.scaled import Scaled
from .mesh import MODEL
from .rules import Cut


def cut_weight(weight: Any, cut: Cut, where: str, place: Callable[[Any, Cut], Any]) -> Any:
    """The weight of a matrix [rows, columns] in few bits, or of e of them, as a device has it.

    cut is that of the matrix, and place(array, its cut) what becomes of each array. UserError, which says `where`,
    if inputs are cut that belong together.
    """
    if isinstance(weight, Scaled):
        each_input = replace(cut, shape=(*cut.shape[:-2], cut.shape[-1]), axes=(*cut.axes[:-2], cut.axes[-1]))
        few = cut_weight(weight.weight, cut, where, place)
        return Scaled(few, place(weight.factors, each_input), weight.transposed)
    if isinstance(weight, Dynamic):
        return Dynamic(cut_weight(weight.weight, cut, where, place), weight.product)
    cuts = (cut_part(cut, part.shape[-1], weight.storage.multiple, where) for part in weight.parts)
    return weight.replace(parts=tuple(map(place, weight.parts, cuts)), columns=cut.shape[-1])


def cut_part(cut: Cut, width: int, unit: int, where: str) -> Cut:
    """How a part lies on the mesh that has `width` numbers for a row, which is coded `unit` inputs at a time."""
    if cut.axes[-1] != MODEL:
        return replace(cut, shape=(*cut.shape[:-1], width))
    ((columns, mine),) = cut.sizes
    check_units(where, mine, columns, math.lcm(unit, columns // math.gcd(columns, width) if width > 1 else 1))
    own = max(width * mine // columns, 1)
    return replace(cut, shape=(*cut.shape[:-1], own), sizes=((width, own),))


def check_units(where: str, mine: int, columns: int, unit: int) -> None:
    """UserError if `mine` of a matrix's inputs, as many as one device has, are not so many units."""
    if mine % unit:
        raise UserError(
            f"mesh has {MODEL}={columns // mine}, which gives a device {mine} of the {columns} inputs of {where}, "
            f"but {unit} are coded together; take fewer devices, or another recipe for it"
        )
