"""Recipes: the ways to keep a matrix in few bits, by name.

    int8 int4 int2 ternary          integer weights; a scale for N numbers as `int4-gN`, affine as `int4-gN-affine`
    fp8 fp8-tensor fp8-tile         e4m3fn weights; a scale an output, one for all, or one for 128 x 128
    mxfp8 mxfp6 mxfp4 mxint8 nvfp4 nf4
    q4_0 … q6_k, tq1_0, iq4_nl …    what the types of GGUF files do

These multiply in float32. The others round x too, token by token, and multiply as `ops` says:

    w8a8                            int8 times int8: the fast one
    w4a8                            int4 with a scale for 32, times int8
    fp8-a8 fp8-tensor-a8 fp8-tile-a8        times e4m3fn, of tiles with a scale for 128 columns of a token
    mxfp8-a8 mxfp6-a6 mxfp4-a4 mxint8-a8 nvfp4-a4       the same format on both sides
"""

import re
from typing import Any, NamedTuple

import numpy as np

from ..errors import UserError
from ..ops import GGUF_TYPES, INTS
from .coded import Coded
from .dynamic import NVFP4, Dynamic, Fp8, Int4Int8, Int8, Mx, Product
from .storage import GGUF, NF4, TILE, Blocks, Floats, Ints, Storage

STORAGES: dict[str, Storage] = {"fp8": Floats(), "fp8-tensor": Floats("tensor"), "fp8-tile": Floats("tile")}
STORAGES |= {"nf4": NF4(), "mxfp8": Blocks("mxfp8_e4m3"), "mxfp6": Blocks("mxfp6_e2m3")}
STORAGES |= {name: Blocks(name) for name in ("mxfp4", "mxint8", "nvfp4")}
STORAGES |= {  # of what both OCP or NVIDIA and GGUF files define, the former stay
    form.name.lower(): GGUF(form.name)
    for form in GGUF_TYPES.values()
    if (form.values > 1 or form.size == 2) and form.name.lower() not in STORAGES
}
PRODUCTS: dict[str, Product] = {"w8a8": Int8(Ints("int8")), "w4a8": Int4Int8(Ints("int4", 32))}
PRODUCTS |= {"fp8-a8": Fp8(Floats()), "fp8-tensor-a8": Fp8(Floats("tensor"))}
PRODUCTS |= {"fp8-tile-a8": Fp8(Floats("tile"), TILE), "nvfp4-a4": NVFP4(Blocks("nvfp4"))}
PRODUCTS |= {
    f"{name}-a{bits}": Mx(Blocks(form))
    for name, form, bits in (
        ("mxfp8", "mxfp8_e4m3", 8),
        ("mxfp6", "mxfp6_e2m3", 6),
        ("mxfp4", "mxfp4", 4),
        ("mxint8", "mxint8", 8),
    )
}
INT_NAME = re.compile(rf"({'|'.join(INTS)})(?:-g([1-9][0-9]{{0,4}}))?(-affine)?")

# What takes the place of a type of large blocks for rows that do not fill them; llama.cpp chooses the same.
NARROWER = {"q2_k": "iq4_nl", "q3_k": "iq4_nl", "iq4_xs": "iq4_nl", "tq1_0": "q4_0", "tq2_0": "q4_0"}
NARROWER |= {"q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}


class Recipe(NamedTuple):
    """How a matrix is kept, and what it is multiplied by; without a product, by decoding it to float32."""

    name: str
    storage: Storage
    product: Product | None = None

    def weight(self, parts: tuple[Any, ...], columns: int, transposed: bool) -> Coded | Dynamic:
        """The weight of a matrix [rows, columns] in parts of the storage, or of its transpose."""
        coded = Coded(parts, self.storage, columns, transposed)
        return Dynamic(coded, self.product) if self.product else coded

    def for_rows_of(self, columns: int) -> "Recipe | None":
        """The recipe itself, or what takes its place for rows of that length; None if nothing does."""
        if columns % self.storage.multiple == 0:
            return self
        return recipe_named(NARROWER[self.name]).for_rows_of(columns) if self.name in NARROWER else None


def recipe_named(name: str) -> Recipe:
    """The recipe of that name; UserError lists what there is."""
    if name in PRODUCTS:
        return Recipe(name, PRODUCTS[name].storage, PRODUCTS[name])
    if name in STORAGES:
        return Recipe(name, STORAGES[name])
    found = INT_NAME.fullmatch(name)
    if found is None or (found[1] == "ternary" and found[3]):
        known = ", ".join((*INTS, *STORAGES, *PRODUCTS))
        raise UserError(
            f"recipe is {name!r}, expected one of {known}; integers also as int4-g32 or int4-g32-affine"
        )
    return Recipe(name, Ints(found[1], int(found[2]) if found[2] else None, bool(found[3])))


def weight_like(
    recipe: Recipe, rows: tuple[int, ...], columns: int, transposed: bool, leaf: Any
) -> Coded | Dynamic:
    """A weight of matrices [*rows, columns] with leaf(shape, dtype) for its parts."""
    one = recipe.storage.encode(np.zeros((1, columns), np.float32))
    parts = tuple(leaf((*rows, *part.shape[1:]), part.dtype) for part in one)
    return recipe.weight(parts, columns, transposed)
