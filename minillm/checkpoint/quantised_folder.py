"""Folders of quantised models: a Hugging Face folder whose tensors are those of the model in memory, by place.

config.json is that of the model it was made from, and says under `quantization_config` which matrix is kept by
which recipe:

    "quantization_config": {"quant_method": "minillm", "weights": {"blocks[0].qkv": {"recipe": "int4-g32"}, …}}

and model.safetensors holds its parts as `blocks[0].qkv.parts[0]`, `.parts[1]` …; what is not coded stands there as
float32, or as bfloat16 if that is exact.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from ..archs import Arch
from ..blocks.params import Shape, stacked
from ..config import Config, shown
from ..errors import UserError
from ..model import Model
from ..parallel import Spread, answers, spread
from ..parallel.mesh import AnyMesh
from ..quant import by_place, is_weight
from ..quant.quantised import Change, Progress
from ..quant.recipes import recipe_named, weight_like
from ..quant.scaled import Scaled
from ..tokenizer import Tokenizer
from .folder_writer import config_text, write_files
from .safetensors import Safetensors
from .source import Index, missing
from .vocabulary import tokenizer_from_folder

KEY, METHOD = "quantization_config", "minillm"
BF16 = np.dtype(ml_dtypes.bfloat16)


def write_quantised(
    folder: Path, model: Model, changes: Sequence[Change], values: Mapping[str, Any], more: Mapping[str, bytes]
) -> None:
    """Write a quantised model, with the entries of config.json and other files; UserError if something is there."""
    weights = {
        change.place: {"recipe": change.recipe} | ({"scaled": True} if change.scaled else {})
        for change in changes
        if change.recipe
    }
    config = dict(values) | {KEY: {"quant_method": METHOD, "weights": weights}}
    tensors = {name: shortened(np.asarray(array)) for name, array in by_place(model, None)[0]}
    write_files(folder, tensors, {"config.json": config_text(config), **more})


def shortened(array: np.ndarray) -> np.ndarray:
    """Float32 as bfloat16 if that loses nothing."""
    if array.dtype != np.float32:
        return array
    short = array.astype(BF16)
    return short if np.array_equal(short.astype(np.float32), array, equal_nan=True) else array


def own_weights(values: dict[str, Any], where: str) -> dict[str, Any] | None:
    """What config.json says of matrices in few bits if it was written here, taken out of its entries; else None."""
    said = values.get(KEY)
    if not isinstance(said, dict) or said.get("quant_method") != METHOD:
        return None
    weights = values.pop(KEY).get("weights")
    if not isinstance(weights, dict):
        raise UserError(f"{where}: {KEY} has no weights by place, expected what minillm quantize wrote")
    return weights


@dataclass(frozen=True)
class Stored:
    """An array of a folder whose numbers are read when a slice of it is wanted, and not before."""

    source: Safetensors
    name: str
    dtype: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all of it."""
        return self.source.shape(self.name)

    def __getitem__(self, index: Index) -> np.ndarray:
        return self.source.stored(self.name, index).astype(self.dtype)


@dataclass(frozen=True)
class QuantisedFolder:
    """An open folder, like `loader.Checkpoint`; `weights` is what config.json says of them."""

    source: Safetensors
    config: Config
    arch: Arch
    weights: Mapping[str, Any]

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer; None if the folder has none."""
        return tokenizer_from_folder(Path(self.source.where))

    def shapes(self) -> Model:
        """The model with shapes in place of arrays; UserError if a tensor is missing, misshapen or unknown."""
        plain = Model.build(self.config, lambda name, layer, *shapes, init: stacked(shapes))
        found, tree = by_place(plain)
        places = [place for place, _ in found]
        unknown = [place for place in self.weights if place not in places]
        if unknown:
            raise UserError(
                f"{self.source.where}: {KEY} speaks of {shown(unknown[0])}, which the model does not have"
            )
        model = tree.unflatten(self.like(place, leaf) for place, leaf in found)
        expected = dict(by_place(model, None)[0])
        for name, leaf in expected.items():
            self.check(name, leaf)
        for name in self.source.names():
            if name not in expected:
                raise UserError(f"{self.source.where}: tensor {name} is not part of the model")
        return model

    def like(self, place: str, leaf: Any) -> Any:
        """The weight of a place as shapes."""
        said = self.weights.get(place)
        if said is None:
            return leaf
        expected = "a recipe for a matrix"
        wrong = UserError(f"{self.source.where}: {KEY} says {shown(said)} of {place}, expected {expected}")
        if not (isinstance(said, dict) and isinstance(said.get("recipe"), str) and is_weight(leaf)):
            raise wrong
        try:
            recipe = recipe_named(said["recipe"])
        except UserError:  # which does not name the file
            raise wrong from None
        rows, columns = leaf.array.shape[:-1], leaf.array.shape[-1]
        if columns % recipe.storage.multiple:
            wanted = f"a multiple of {recipe.storage.multiple} for {recipe.name}"
            raise UserError(f"{self.source.where}: {place} has rows of {columns}, expected {wanted}")
        weight: Any = weight_like(recipe, rows, columns, leaf.transposed, jax.ShapeDtypeStruct)
        if not said.get("scaled"):
            return weight
        factors: Any = jax.ShapeDtypeStruct((*rows[:-1], columns), np.float32)
        return Scaled(weight, factors, not leaf.transposed)

    def check(self, name: str, leaf: jax.ShapeDtypeStruct) -> None:
        """UserError unless the file has a tensor of that shape and kind."""
        if name not in self.source.names():
            raise missing(self.source.where, name)
        found, dtype = self.source.shape(name), np.dtype(leaf.dtype)
        kinds = ("F32", "BF16") if dtype == np.float32 else ({"uint8": "U8", "int8": "I8"}[dtype.name],)
        if found != leaf.shape or self.source.dtype(name) not in kinds:
            there, expected = (
                f"{list(found)} of {self.source.dtype(name)}",
                f"{list(leaf.shape)} of {' or '.join(kinds)}",
            )
            raise UserError(f"{self.source.where}: tensor {name} is {there}, expected {expected}")

    def model(self, progress: Progress = lambda *_: None) -> Model:
        """Read the weights; progress is told how many bytes of the file have been read, and of how many."""
        leaves, tree = by_place(self.shapes(), None)
        total, done, arrays = sum(self.source.nbytes(name) for name, _ in leaves), 0, []
        for name, leaf in leaves:
            arrays.append(jax.device_put(self.source.stored(name).astype(leaf.dtype)))
            done += self.source.nbytes(name)
            progress("reading weights", done, total)
        return tree.unflatten(arrays)

    def on_mesh(self, mesh: AnyMesh, progress: Progress) -> Spread:
        """The model on a mesh, of which a process reads what its own devices hold."""
        leaves, tree = by_place(self.shapes(), None)
        arrays = [Stored(self.source, name, leaf.dtype) for name, leaf in leaves]
        read, total, done = answers(tree.unflatten(arrays), self.config), sum(map(self.nbytes, arrays)), 0

        def get(name: str, layer: int | None, *shapes: Shape, init: Any) -> Any:
            nonlocal done
            found = read(name, layer, *shapes, init=init)
            done += sum(map(self.nbytes, jax.tree.leaves(found)))
            progress("reading weights", done, total)
            return found

        return spread(self.config, mesh, get)

    def nbytes(self, array: Stored) -> int:
        """How many bytes an array has in the file."""
        return self.source.nbytes(array.name)
