"""Calibrated quantisation: rounding a model's matrices with their inputs in view, by name.

    gptq:RECIPE     integers: columns make up for each other's errors
    awq:RECIPE      of weights alone: columns that meet large inputs are made larger before they are rounded
    smooth:RECIPE   that rounds x too, as w8a8: large inputs are made smaller, and their columns larger
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
from ..quant.quantised import Progress
from ..quant.recipes import Recipe
from ..quant.rules import KEEP, Rule
from ..quant.storage import GGUF, Ints, Parts, Storage
from ..texts import calibration
from ..tokenizer import Tokenizer
from .calibration import Inputs, calibrated, windows
from .factors import awq_factors, smooth_factors
from .gptq import gptq_parts
from .importance import weighed, weighs
from .kept import Arrays, digest, kept

NO_TOKENIZER = "this checkpoint has no tokenizer, so it cannot read the texts to calibrate with"
SINGULAR = "the second moments of its inputs are those of no numbers; calibrate with another text"


class Found(NamedTuple):
    """A matrix as a storage keeps it, and what its inputs are multiplied with, f32 [columns], if anything."""

    parts: Parts
    factors: np.ndarray | None = None


class Method(NamedTuple):
    """find(w f32 [rows, columns], inputs, storage); which recipes it takes, and that in words."""

    find: Callable[[np.ndarray, Inputs, Any], Found]
    takes: Callable[[Recipe], bool]
    wants: str


def by_gptq(w: np.ndarray, inputs: Inputs, storage: Ints) -> Found:
    """Frantar et al., arXiv:2210.17323."""
    return Found(gptq_parts(w, inputs.gram, storage))


def by_awq(w: np.ndarray, inputs: Inputs, storage: Storage) -> Found:
    """Lin et al., arXiv:2306.00978."""
    return Found(*awq_factors(w, inputs, storage))


def by_smooth(w: np.ndarray, inputs: Inputs, storage: Storage) -> Found:
    """Xiao et al., arXiv:2211.10438."""
    s = smooth_factors(w, inputs)
    return Found(storage.encode(w * s), 1 / s)


def by_importance(w: np.ndarray, inputs: Inputs, storage: Ints | GGUF) -> Found:
    """As llama.cpp with an importance matrix."""
    return Found(weighed(w, np.diag(inputs.gram), storage))


METHODS = {
    "gptq": Method(by_gptq, lambda recipe: isinstance(recipe.storage, Ints), "integers, such as int4-g32"),
    "awq": Method(by_awq, lambda recipe: recipe.product is None, "a recipe that leaves x as it is"),
    "smooth": Method(by_smooth, lambda recipe: recipe.product is not None, "one that rounds x too, such as w8a8"),
    "imatrix": Method(
        by_importance,
        lambda recipe: weighs(recipe.storage),
        "integers, or a GGUF type with a search: q2_k … q6_k, iq4_nl, iq4_xs",
    ),
}


def check_methods(rules: Sequence[Rule]) -> None:
    """UserError for a method that is none, or that does not take its recipe."""
    for rule in rules:
        if rule.method is None:
            continue
        if rule.method not in METHODS:
            raise UserError(f"method is {rule.method!r}, expected one of {', '.join(METHODS)} before the colon")
        method = METHODS[rule.method]
        if rule.recipe is None or not method.takes(rule.recipe):
            name = KEEP if rule.recipe is None else rule.recipe.name
            raise UserError(f"{rule.method} is asked for {name}, expected {method.wants}")


class Calibrated:
    """How matrices are rounded by a method; stands in for `quant.quantised.rounded`.

    With a folder, what an earlier run has found for a matrix is read from there.
    """

    def __init__(self, method: str, inputs: Mapping[str, Inputs], folder: Path | None = None):
        self.method, self.inputs, self.folder = method, inputs, folder

    def __call__(
        self, place: str, matrix: Any, recipe: Recipe
    ) -> tuple[tuple[np.ndarray, ...], np.ndarray | None, str | None]:
        """Parts and factors of a matrix [rows, columns] or of e of them, and what the method was not used for.

        ValueError if the storage cannot hold it, UserError if there is no working with its inputs.
        """
        matrix = np.asarray(matrix, np.float32)
        stack, storage = matrix.reshape(-1, *matrix.shape[-2:]), recipe.storage
        inputs = self.inputs_at(place, len(stack))
        given = vars(self.inputs[place]).values() if place in self.inputs else ()
        arrays = kept(
            self.folder,
            place,
            lambda: digest([self.method, storage], [matrix, *given]),
            lambda: self.found(place, stack, inputs, recipe),
        )
        arrays = {name: a.reshape(*matrix.shape[:-2], *a.shape[1:]) for name, a in arrays.items()}
        factors = arrays.pop("factors", None)
        return tuple(arrays[name] for name in sorted(arrays)), factors, without_inputs(inputs)

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

    def found(self, place: str, stack: np.ndarray, inputs: Sequence[Inputs | None], recipe: Recipe) -> Arrays:
        """Parts by their number, and factors if there are any, with an axis for the matrices of a stack."""
        method, storage, each = METHODS[self.method], recipe.storage, []
        if not method.takes(recipe):
            inputs = [None] * len(stack)  # a narrower recipe, which the rows need
        for w, given in zip(stack, inputs, strict=True):
            try:
                each.append(method.find(w, given, storage) if given else Found(storage.encode(w)))
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
    return f"rounded to nearest, as the text brought {which} no inputs"


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
        raise UserError(NO_TOKENIZER)
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
