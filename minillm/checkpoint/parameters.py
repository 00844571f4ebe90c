"""The parameters of a model beside what its blocks asked for: what a checkpoint is written from."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ..blocks.params import Shape, stacked
from ..config import Config
from ..errors import UserError
from ..model import Model
from ..quant import Dense, as_stored, is_weight


@dataclass(frozen=True)
class Request:
    """What `Model.build` asks for; to jax it is a leaf, and can stand where the array will be."""

    name: str
    layer: int | None
    shapes: tuple[Shape, ...]

    @property
    def place(self) -> str:
        """The parameter, for errors."""
        return self.name if self.layer is None else f"{self.name} of layer {self.layer}"


def parameters(model: Model, config: Config) -> Iterator[tuple[Request, Any]]:
    """What a model is made of beside the requests that it answered: float32 arrays, or weights that are coded."""
    asked: Any = Model.build(config, lambda name, layer, *shapes, init: Request(name, layer, shapes))
    requests, leaves = (jax.tree.flatten(one, is_leaf=is_weight) for one in (asked, model))
    if requests[1] != leaves[1]:
        raise UserError("the model is not the one that its config describes")
    pairs: Any = zip(requests[0], leaves[0], strict=True)
    for asked, found in pairs:
        request: Any = asked
        if isinstance(asked, Dense):
            request, found = asked.array, as_stored(asked, found)
        if is_weight(found):
            yield request, found
            continue
        expected = stacked(request.shapes).shape
        if found.shape != expected:
            raise UserError(
                f"the model's {request.place} has shape {list(found.shape)}, its config says {list(expected)}"
            )
        yield request, np.asarray(found).astype(np.float32, copy=False)
