"""Recipes: what becomes of a model's matrices when it is quantised, by name.

    w8a8                    int8 weights and int8 activations: the fast one
    fp8 fp8-tensor          e4m3fn weights, a scale an output or one for all
    mxfp8 mxfp6 mxfp4 mxint8 nvfp4 nf4
    int8 int4 int2 ternary  integer weights; a scale for N numbers as `int4-gN`, affine as `int4-gN-affine`
    q4_0 … q6_k, tq1_0, iq4_nl …    what the types of GGUF files do

All but w8a8 keep weights in few bits and multiply in float32. Norms, routers and positions stay as they are, and so
does a matrix whose rows are no multiple of a block or group: the report says which.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from ..errors import UserError
from ..ops import GGUF_TYPES, INTS
from .coded import Coded
from .dense import Dense
from .int8 import Int8
from .storage import GGUF, NF4, Blocks, Floats, Ints, Storage

STORAGES: dict[str, Storage] = {"fp8": Floats(), "fp8-tensor": Floats("tensor"), "nf4": NF4()}
STORAGES |= {"mxfp8": Blocks("mxfp8_e4m3"), "mxfp6": Blocks("mxfp6_e2m3")}
STORAGES |= {name: Blocks(name) for name in ("mxfp4", "mxint8", "nvfp4")}
STORAGES |= {
    form.name.lower(): GGUF(form.name) for form in GGUF_TYPES.values() if form.values > 1 or form.size == 2
}
for clash in ("mxfp4", "nvfp4"):
    STORAGES[clash] = Blocks(clash)  # as OCP and NVIDIA define them, not as GGUF files have them
STAYS = "stays in every recipe"
STAY = re.compile(r"router|positions")
INT_NAME = re.compile(rf"({'|'.join(INTS)})(?:-g([1-9][0-9]{{0,4}}))?(-affine)?")


# From place, matrices f32 [..., rows, columns], storage (None for w8a8) and whether rows are looked up, as those of
# an embedding are, to their weight, and what could not be done as well as meant.
Store = Callable[[str, np.ndarray, Storage | None, bool], tuple[Any, str | None]]
Progress = Callable[[str, int, int], None]  # what is being done, how many steps of it are, of how many


class Change(NamedTuple):
    """What became of matrices: their place, size (in, out), count, bits a weight, and why they were kept if so.

    remark: what a calibrated method could not do for them.
    """

    place: str
    shape: tuple[int, int]
    count: int
    bits: float
    kept: str | None = None
    remark: str | None = None


def storage_named(recipe: str) -> Storage:
    """The storage of a recipe; UserError lists what there is."""
    if recipe in STORAGES:
        return STORAGES[recipe]
    found = INT_NAME.fullmatch(recipe)
    if found is None or (found[1] == "ternary" and found[3]):
        known = ", ".join(("w8a8", *INTS, *STORAGES))
        raise UserError(
            f"recipe is {recipe!r}, expected one of {known}; integers also as int4-g32 or int4-g32-affine"
        )
    return Ints(found[1], int(found[2]) if found[2] else None, bool(found[3]))


def rounded(place: str, matrix: np.ndarray, storage: Storage | None, rowwise: bool) -> tuple[Any, None]:
    """The weight of matrices, every number rounded by itself."""
    return Int8.of(matrix, rowwise) if storage is None else Coded.of(matrix, storage, not rowwise), None


def quantised(
    model: Any, recipe: str, store: Store = rounded, progress: Progress = lambda *_: None
) -> tuple[Any, list[Change]]:
    """The model with its matrices as a recipe says, and what became of each.

    UserError if the recipe is none, no matrix can be stored so, or one of them is not finite.
    """
    storage = None if recipe == "w8a8" else storage_named(recipe)
    leaves, tree = jax.tree_util.tree_flatten_with_path(model, is_leaf=lambda node: hasattr(node, "for_rows"))
    weights, changes = [], []
    count = sum(hasattr(leaf, "for_rows") for _, leaf in leaves)
    for path, leaf in leaves:
        if hasattr(leaf, "for_rows"):
            leaf, change = changed(jax.tree_util.keystr(path).removeprefix("."), leaf, storage, recipe, store)
            changes.append(change)
            progress("rounding", len(changes), count)
        weights.append(leaf)
    if all(change.kept for change in changes):
        raise UserError(f"no matrix can be stored as {recipe}: {changes[0].place}: {changes[0].kept}")
    return jax.tree_util.tree_unflatten(tree, weights), changes


def changed(place: str, weight: Any, storage: Storage | None, recipe: str, store: Store) -> tuple[Any, Change]:
    """One weight as a recipe says, or as it is with the reason."""
    reason, remark = None, None
    embedding = place == "embed"
    if not isinstance(weight, Dense):
        raise UserError(
            f"{place} is stored as {type(weight).__name__}, expected plain numbers: quantise a model once"
        )
    if STAY.search(place):
        reason = STAYS
    elif storage and (columns := weight.shape[embedding]) % storage.multiple:
        reason = f"its rows of {columns} are no multiple of {storage.multiple}"
    if reason is None:
        matrix = np.asarray(weight.dense() if embedding else weight.T.dense(), np.float32)
        try:
            weight, remark = store(place, matrix, storage, embedding)
        except ValueError as error:
            raise UserError(f"{place} cannot be stored as {recipe}: {error}") from None
    count = int(np.prod(jax.tree.leaves(weight)[0].shape[:-2]))
    size = count * weight.shape[0] * weight.shape[1]
    bits = 8 * sum(leaf.nbytes for leaf in jax.tree.leaves(weight)) / size
    return weight, Change(place, weight.shape, count, bits, reason, remark)


def summary(recipe: str, changes: list[Change]) -> str:
    """A line for users: bits a weight, and what could not be done so."""
    line = f"{recipe}: {bits_a_weight(changes):.2f} bits a weight"
    if kept := [change for change in changes if change.kept not in (None, STAYS)]:
        line += f"; {len(kept)} of {len(changes)} matrices stay as they are, {kept[0].place} as {kept[0].kept}"
    if plain := [change for change in changes if change.remark]:
        line += f"; {len(plain)} are at least in part rounded to nearest, {plain[0].place} as {plain[0].remark}"
    return line


def bits_a_weight(changes: list[Change]) -> float:
    """Of all matrices together, those that stayed as they are included."""
    sizes = [change.count * change.shape[0] * change.shape[1] for change in changes]
    return sum(size * change.bits for size, change in zip(sizes, changes, strict=True)) / sum(sizes)
