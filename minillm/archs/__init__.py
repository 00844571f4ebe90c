"""Architectures, one file each, found by name: Hugging Face's `model_type`, GGUF's `general.architecture`.

An architecture's file holds what is special about it: how its config is read, how its tensors are called and
laid out in a checkpoint (data), and how blocks are put together.
"""

import importlib
import pkgutil
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol, cast

from ..config import Config, Fields
from ..errors import UserError
from ..model import Model
from .tensors import Entry

# get(name, layer, *shapes) -> array [rows, ...]: a tensor by its name here. Several shapes are those of the
# tensors it is stacked from; each is checked.
Get = Callable[..., Any]


class Arch(Protocol):
    """What a module in this folder provides."""

    HF_TENSORS: Mapping[str, Entry]
    GGUF_TENSORS: Mapping[str, Entry]
    HARMLESS_TENSORS: Collection[str]

    def config_from_hf(self, fields: Fields) -> Config: ...
    def config_from_gguf(self, fields: Fields, tensors: Collection[str]) -> Config: ...
    def build(self, config: Config, get: Get) -> Model: ...


def names() -> list[str]:
    """The architectures there are."""
    helpers = {"tensors"}
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in helpers)


def find(name: Any, where: str) -> Arch:
    """The architecture called `name`; UserError naming `where` it was asked for and what there is."""
    if name not in names():
        raise UserError(f"{where} is {name!r}, which is not supported; expected one of: {', '.join(names())}")
    return cast(Arch, importlib.import_module(f".{name}", __name__))
