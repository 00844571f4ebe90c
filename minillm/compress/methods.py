"""Calibrated quantisation: rounding a model's matrices with their inputs in view, by name.

    gptq:RECIPE     integers: columns make up for each other's errors
    awq:RECIPE      all but w8a8: columns that meet large inputs are made larger before they are rounded
    smooth:w8a8     large inputs are made smaller, and their columns larger
    imatrix:RECIPE  integers, and GGUF types with a search for scales: errors count as much as inputs are large

RECIPE is one of `quant.recipes`, and what is found is stored as it says; awq and smooth add a factor an input.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ..errors import UserError
from ..model import Model
from ..ops import encode_ints_ref
from ..quant.coded import Coded
from ..quant.int8 import Int8
from ..quant.recipes import Progress, storage_named
from ..quant.scaled import Scaled
from ..quant.storage import GGUF, Ints, Parts, Storage
from ..texts import calibration
from ..tokenizer import Tokenizer
from .calibration import Inputs, calibrated, windows
from .factors import awq_factors, smooth_factors
from .gptq import gptq_parts
from .importance import weighed, weighs
from .kept import Arrays, digest, kept

SINGULAR = "the second moments of its inputs are those of no numbers; calibrate with another text"


class Found(NamedTuple):
    """A matrix as a storage keeps it, and what its inputs are multiplied with, f32 [columns], if anything."""

    parts: Parts
    factors: np.ndarray | None = None


class Method(NamedTuple):
    """find(w f32 [rows, columns], inputs, storage); which storages it takes (None: w8a8), and that in words."""

    find: Callable[[np.ndarray, Inputs, Any], Found]
    takes: Callable[[Storage | None], bool]
    wants: str


def by_gptq(w: np.ndarray, inputs: Inputs, storage: Ints) -> Found:
    """Frantar et al., arXiv:2210.17323."""
    return Found(gptq_parts(w, inputs.gram, storage))


def by_awq(w: np.ndarray, inputs: Inputs, storage: Storage) -> Found:
    """Lin et al., arXiv:2306.00978."""
    return Found(*awq_factors(w, inputs, storage))


def by_smooth(w: np.ndarray, inputs: Inputs, storage: None) -> Found:
    """Xiao et al., arXiv:2211.10438."""
    s = smooth_factors(w, inputs)
    return Found(nearest(w * s, storage), 1 / s)


def by_importance(w: np.ndarray, inputs: Inputs, storage: Ints | GGUF) -> Found:
    """As llama.cpp with an importance matrix."""
    return Found(weighed(w, np.diag(inputs.gram), storage))


def nearest(w: np.ndarray, storage: Storage | None) -> Parts:
    """The parts of a matrix without calibration."""
    if storage:
        return storage.encode(w)
    codes, scales, _ = encode_ints_ref(w, "int8")
    return codes, scales[:, 0]


METHODS = {
    "gptq": Method(by_gptq, lambda storage: isinstance(storage, Ints), "integers, such as int4-g32"),
    "awq": Method(by_awq, lambda storage: storage is not None, "any recipe but w8a8, which smooth is for"),
    "smooth": Method(by_smooth, lambda storage: storage is None, "w8a8"),
    "imatrix": Method(by_importance, weighs, "integers, or a GGUF type with a search: q2_k … q6_k, iq4_nl, iq4_xs"),
}


def method_of(recipe: str) -> tuple[str | None, str]:
    """Of METHOD:RECIPE both, and of a plain recipe None and itself; UserError if they do not fit each other."""
    name, colon, plain = recipe.rpartition(":")
    if not colon:
        return None, recipe
    if name not in METHODS:
        raise UserError(f"recipe is {recipe!r}, expected one of {', '.join(METHODS)} before the colon")
    if not METHODS[name].takes(None if plain == "w8a8" else storage_named(plain)):
        raise UserError(f"recipe is {recipe!r}, expected after {name}: {METHODS[name].wants}")
    return name, plain


class Calibrated:
    """How matrices become weights by a method; called in the place of `quant.recipes.rounded`.

    With a folder, what an earlier run has found for a matrix is read from there.
    """

    def __init__(self, method: str, inputs: Mapping[str, Inputs], folder: Path | None = None):
        self.method, self.inputs, self.folder = method, inputs, folder

    def __call__(
        self, place: str, matrix: np.ndarray, storage: Storage | None, rowwise: bool
    ) -> tuple[Any, str | None]:
        """The weight of a matrix [rows, columns] or of e of them, and what of it the method was not used for.

        ValueError if the storage cannot hold it, UserError if there is no working with its inputs.
        """
        stack = matrix.reshape(-1, *matrix.shape[-2:])
        inputs = self.inputs_at(place, len(stack))
        given = vars(self.inputs[place]).values() if place in self.inputs else ()
        arrays = kept(
            self.folder,
            place,
            lambda: digest([self.method, storage], [matrix, *given]),
            lambda: self.found(place, stack, inputs, storage),
        )
        arrays = {name: jax.device_put(a.reshape(*matrix.shape[:-2], *a.shape[1:])) for name, a in arrays.items()}
        factors = arrays.pop("factors", None)
        parts = tuple(arrays[name] for name in sorted(arrays))
        weight = Int8(*parts) if storage is None else Coded(parts, storage, matrix.shape[-1], transposed=True)
        weight = weight if factors is None else Scaled(weight, factors)
        return weight.T if rowwise else weight, without_inputs(inputs)

    def inputs_at(self, place: str, count: int) -> list[Inputs | None]:
        """Those of `count` matrices, None if it multiplied nothing but zeros; UserError if one is not finite."""
        if place not in self.inputs:
            return [None] * count
        every = self.inputs[place]
        figures = vars(every).values()
        if not all(np.all(np.isfinite(figure)) for figure in figures):
            raise UserError(f"{place}: its inputs hold NaN or infinity when the text is read, expected finite ones")
        each = [Inputs(*one) for one in zip(*figures, strict=True)] if every.n.ndim else [every]
        return [one if np.any(one.gram) else None for one in each]

    def found(self, place: str, stack: np.ndarray, inputs: Sequence[Inputs | None], storage: Any) -> Arrays:
        """Parts by their number, and factors if there are any, with an axis for the matrices of a stack."""
        each = []
        for w, given in zip(stack, inputs, strict=True):
            try:
                each.append(METHODS[self.method].find(w, given, storage) if given else Found(nearest(w, storage)))
            except np.linalg.LinAlgError:
                raise UserError(f"{place}: {SINGULAR}") from None
        arrays = {str(i): np.stack(part) for i, part in enumerate(zip(*(one.parts for one in each), strict=True))}
        if any(one.factors is not None for one in each):
            ones = np.ones(stack.shape[-1], np.float32)
            arrays["factors"] = np.stack([ones if one.factors is None else one.factors for one in each])
        return arrays


def without_inputs(inputs: Sequence[Inputs | None]) -> str | None:
    """Which of the matrices at a place are only rounded to nearest; None if none is."""
    idle = [str(i) for i, one in enumerate(inputs) if one is None]
    if not idle:
        return None
    which = "it" if len(inputs) == 1 else f"{len(idle)} of its {len(inputs)} matrices ({', '.join(idle)})"
    return f"the text brought {which} no inputs"


def inputs_of(
    model: Model,
    tokenizer: Tokenizer | None,
    texts: Sequence[str] | None,
    longest: int,
    folder: Path | None = None,
    progress: Progress = lambda *_: None,
) -> dict[str, Inputs]:
    """What goes into every matrix while the model reads texts (None: the bundled ones), `longest` tokens at a time.

    With a folder it is kept there, and read from there for the same model and texts. UserError without a tokenizer.
    """
    if tokenizer is None:
        raise UserError("this checkpoint has no tokenizer, so it cannot read the texts to calibrate with")
    batches = windows(tokenizer, calibration() if texts is None else texts, longest)

    def read() -> Arrays:
        inputs: dict[str, Inputs] = {}
        for i, so_far in enumerate(calibrated(model, iter(batches)), 1):
            inputs = so_far
            progress("reading", i, len(batches))
        return {f"{place} {name}": figure for place, one in inputs.items() for name, figure in vars(one).items()}

    arrays = kept(folder, "inputs", lambda: digest([], [*map(np.asarray, jax.tree.leaves(model)), *batches]), read)
    places = dict.fromkeys(name.rpartition(" ")[0] for name in arrays)
    return {place: Inputs(*(arrays[f"{place} {field.name}"] for field in fields(Inputs))) for place in places}
