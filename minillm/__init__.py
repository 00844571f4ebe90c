"""minillm: LLM inference, small enough to read.

    lm = minillm.load("smollm2-135m")
    lm.generate("The capital of France is").text

`minillm.ops` holds the reference kernels, `minillm.laws` the protocol that every block and cache obeys.
Importing this module is cheap: what needs JAX is imported on first use.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .lm import LM as LM
    from .lm import init as init
    from .lm import load as load

__version__ = "0.1.0"

_HOMES = {"load": "lm", "init": "lm", "LM": "lm"}
_MODULES = ("laws", "ops")

if (Path(__file__).parent / "ops").is_file():  # git without symlinks checks the link out as a small text file
    raise ImportError(
        "minillm/ops is a text file, expected a symlink to ../ops: this checkout was made without symlinks; "
        "clone again with `git -c core.symlinks=true clone` or install the wheel"
    )


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_MODULES})


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'minillm' has no attribute {name!r}")
