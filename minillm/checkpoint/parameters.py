"""The parameters of a model beside what its blocks asked for: what a checkpoint is written from."""

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import numpy as np

from ..blocks.params import Shape
from ..config import Config
from ..errors import UserError
from ..model import Model
from .loader import stacked


@dataclass(frozen=True)
class Request:
    """What `Model.build` asks for; to jax it is a leaf, and can stand where the array will be."""

    name: str
    layer: int | None
    shapes: tuple[Shape, ...]


def parameters(model: Model, config: Config) -> Iterator[tuple[Request, np.ndarray]]:
    """The arrays of a model, in float32, beside the requests that they answered."""
    requests = Model.build(config, lambda name, layer, *shapes, init: Request(name, layer, shapes))
    if jax.tree.structure(requests) != jax.tree.structure(model):
        raise UserError("the model is not the one that its config describes, in plain floating point")
    for request, found in zip(jax.tree.leaves(requests), jax.tree.leaves(model), strict=True):
        expected = stacked(request.shapes).shape
        if found.shape != expected:
            where = request.name if request.layer is None else f"{request.name} of layer {request.layer}"
            raise UserError(f"the model's {where} has shape {list(found.shape)}, its config says {list(expected)}")
        yield request, np.asarray(found).astype(np.float32, copy=False)
