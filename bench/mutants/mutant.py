"""A seeded bug as data: which text of which file of `ops` becomes what, and the kernel that results."""

import importlib
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import minillm.ops

OPS = Path(minillm.ops.__file__).resolve().parent


class Mutant(NamedTuple):
    """One bug: in `file` (under ops/), `old` stands once and becomes `new`; `form` of `op` is then wrong."""

    op: str
    form: str  # a key of Op.forms
    bug: str
    file: str
    old: str
    new: str


def broken(mutant: Mutant, form: Callable) -> Callable:
    """The form with the bug in it; the real modules stay as they are."""
    source = (OPS / mutant.file).read_text()
    if (times := source.count(mutant.old)) != 1:
        raise ValueError(f"{mutant.bug!r}: {mutant.old!r} stands {times} times in {mutant.file}, expected once")
    name = "minillm.ops." + mutant.file.removesuffix(".py").replace("/", ".")
    module = types.ModuleType(name)
    module.__package__, module.__file__ = name.rpartition(".")[0], str(OPS / mutant.file)
    exec(compile(source.replace(mutant.old, mutant.new), module.__file__, "exec"), module.__dict__)
    if form.__module__ == name:
        return getattr(module, form.__name__)
    kept = {one: sys.modules[one] for one in (name, form.__module__)}
    try:  # the bug is in a file that the form's own file imports: import that one anew, beside the bug
        sys.modules[name] = module
        del sys.modules[form.__module__]
        return getattr(importlib.import_module(form.__module__), form.__name__)
    finally:
        sys.modules.update(kept)
        parent, _, leaf = form.__module__.rpartition(".")
        setattr(sys.modules[parent], leaf, kept[form.__module__])
