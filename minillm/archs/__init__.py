"""Architectures, one file each, found by the names that checkpoints have for them.

A file holds what is special about its family: how a config is read, and how tensors are called and laid out in a
checkpoint (data). The blocks that a config lists are built by `Model.build`.
"""

import importlib
import pkgutil
from collections.abc import Collection, Mapping
from typing import Any, Protocol, cast

from ..config import Config, Fields, shown
from ..errors import UserError
from .tensors import Entry, Source

# The modules of this folder that are not families.
HELPERS = {"from_gguf", "from_hf", "tensors", "to_gguf"}


class Arch(Protocol):
    """What a module in this folder provides.

    HF      the `model_type`s of config.json it reads; GGUF: the `general.architecture`s
    *_TENSORS, HARMLESS_TENSORS   how parameters are made from a checkpoint's tensors; what may lie there unused,
                    where {n} stands for the number of layers and * for anything
    gguf_metadata   the other direction of config_from_gguf; missing where a family is not written as GGUF
    """

    HF: Collection[str]
    GGUF: Collection[str]
    HF_TENSORS: Mapping[str, Entry]
    GGUF_TENSORS: Mapping[str, Entry]
    HARMLESS_TENSORS: Collection[str]

    def config_from_hf(self, fields: Fields) -> Config: ...
    def config_from_gguf(self, fields: Fields, source: Source) -> Config: ...
    def gguf_metadata(self, config: Config) -> dict[str, Any]: ...


def all_archs() -> list[Arch]:
    """The architectures there are."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in HELPERS)
    return [cast(Arch, importlib.import_module(f".{name}", __name__)) for name in names]


def find_hf(model_type: Any, where: str) -> Arch:
    """The architecture of a `model_type`; UserError naming `where` it was asked for and what there is."""
    return find({name: arch for arch in all_archs() for name in arch.HF}, model_type, where)


def find_gguf(architecture: Any, where: str) -> Arch:
    """The architecture of a `general.architecture`; UserError as in `find_hf`."""
    return find({name: arch for arch in all_archs() for name in arch.GGUF}, architecture, where)


def find(known: Mapping[str, Arch], name: Any, where: str) -> Arch:
    """The architecture known as `name`, or a UserError."""
    if not isinstance(name, str) or name not in known:
        names = ", ".join(sorted(known))
        raise UserError(
            f"{where} is {shown(name)}, not supported; expected one of {names} (from Python, pass arch=)"
        )
    return known[name]
