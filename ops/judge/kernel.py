"""A kernel under judgement: any callable, in whichever array library it wants, or a program of its own.

A kernel takes an op's required arrays by position and everything else by keyword, and returns what the op
returns. What it does not take it need not: a keyword missing from its signature, or a value it does not declare,
makes a case "not covered", which the report counts; it never passes silently.
"""

import functools
import importlib.util
import inspect
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from ..cases import Arrays, Case, DistributionOp, Op

ORDINARY = "ordinary"  # the style of inputs that are not nasty

Library = Literal["jax", "numpy", "torch", "cupy"]
Supports = Mapping[str, Container]  # {"k": (64, 128), "dtype": ("bfloat16",), "t": range(1, 4096)}


class NotCovered(TypeError):
    """The kernel does not claim to do this."""


class Kernel:
    """A callable with its array library and what it declares to support.

    `supports` maps a size's letter, an option, "dtype" or "style" to the values that are allowed, and an optional
    array to (False,) if it is not taken; what is not named is not limited. It may also stand on the callable
    itself, as `kernel.supports = {...}`.
    """

    def __init__(self, function: Callable, arrays: Library = "jax", supports: Supports | None = None):
        if arrays not in ("jax", "numpy", "torch", "cupy"):
            raise ValueError(f"arrays is {arrays!r}, expected 'jax', 'numpy', 'torch' or 'cupy'")
        if importlib.util.find_spec(arrays) is None:
            raise ValueError(f"arrays is {arrays!r}, but {arrays} is not installed")
        self.function, self.arrays = function, arrays
        self.name = getattr(function, "__name__", type(function).__name__)
        self.supports = {**getattr(function, "supports", {}), **(supports or {})}
        self.keywords = keywords_of(function)

    def uncovered(self, case: Case, dtype: str, style: str) -> str | None:
        """Why the case is not covered, or None if it is."""
        facts = {**case.sizes, **case.options, **dict.fromkeys(case.inputs, True), "dtype": dtype}
        facts |= {"style": style} if style != ORDINARY else {}
        for name, allowed in self.supports.items():
            if name in facts and facts[name] not in allowed:
                return f"{name} = {facts[name]}"
        return self.missing((*case.options, *case.inputs))

    def missing(self, names: Sequence[str]) -> str | None:
        """The first keyword the kernel does not take."""
        return next((f"no keyword {name!r}" for name in names if self.keywords and name not in self.keywords), None)

    def __call__(
        self, op: Op | DistributionOp, arrays: Arrays, options: Mapping[str, Any]
    ) -> tuple[np.ndarray, ...]:
        """Run it on NumPy arrays -> its outputs as NumPy arrays.

        NotCovered if it lacks a keyword, ValueError if it overwrites an argument.
        """
        keywords = {name: value for name, value in arrays.items() if name not in op.required}
        if reason := self.missing((*keywords, *options)):
            raise NotCovered(f"{self.name}: {reason}")
        given = [to_library(arrays[name], self.arrays) for name in op.required]
        named = {name: to_library(value, self.arrays) for name, value in keywords.items()}
        result = as_tuple(self.function(*given, **named, **options))
        for name, x in {**dict(zip(op.required, given, strict=True)), **named}.items():
            if self.arrays != "jax" and to_numpy(x).tobytes() != arrays[name].tobytes():
                raise ValueError(f"{self.name} overwrote its argument {name}")
        return tuple(to_numpy(one) for one in result)


def keywords_of(function: Callable) -> set[str] | None:
    """The names of a function's parameters; None if it takes any keyword, or does not say (compiled code)."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return None
    return None if any(one.kind is one.VAR_KEYWORD for one in parameters) else {one.name for one in parameters}


def as_tuple(result: Any) -> tuple:
    """The outputs of an op, also of one that returns a single array."""
    return tuple(result) if isinstance(result, tuple | list) else (result,)


def compiled(form: Callable) -> Callable:
    """A JAX form under jit, one program for each combination of options (what is no array is static).

    XLA likes to leave out roundings that the code asks for; here it may not, or yardsticks would be too fine.
    """
    strict = {"xla_allow_excess_precision": False}
    programs = {}

    def call(*arrays, **keywords):
        static = {name: value for name, value in keywords.items() if not hasattr(value, "shape")}
        key = tuple(sorted(static.items()))
        if key not in programs:
            body = functools.partial(form, **static)
            programs[key] = jax.jit(body, compiler_options=strict)
        return programs[key](*arrays, **{name: keywords[name] for name in keywords if name not in static})

    call.__name__ = type(form).__name__
    return functools.update_wrapper(call, form)


def to_library(x: np.ndarray, library: Library) -> Any:
    """A fresh array for the kernel. bfloat16 has no NumPy of its own, so it crosses as bits."""
    x = x.copy()
    if library == "numpy":
        return x
    if library == "jax":
        return jnp.asarray(x)
    if library == "cupy":
        import cupy  # pyright: ignore[reportMissingImports]

        return cupy.from_dlpack(jnp.asarray(x)) if x.dtype == ml_dtypes.bfloat16 else cupy.asarray(x)
    import torch

    bits = torch.from_numpy(x.view(np.int16) if x.dtype == ml_dtypes.bfloat16 else x)
    return bits.view(torch.bfloat16) if x.dtype == ml_dtypes.bfloat16 else bits


def to_numpy(x: Any) -> np.ndarray:
    """Whatever a kernel returned, on the host: through DLPack where it is neither NumPy nor JAX."""
    if isinstance(x, np.ndarray | np.generic | float | int | jax.Array):
        return np.asarray(x)
    if hasattr(x, "get"):  # a CuPy array
        return x.get()
    if hasattr(x, "detach"):  # a torch tensor, perhaps on a device
        x = x.detach().cpu().contiguous()
    return np.asarray(jnp.from_dlpack(x))


def program(command: Sequence[str], seconds: float = 60.0) -> Callable:
    """A kernel that is a program: it is run as `command IN.npz OUT.npz` and must exit with 0.

    IN.npz holds the required arrays as `0`, `1` … in their order, the others by name, and `options`, a JSON text;
    OUT.npz must hold the op's outputs as `0`, `1` …
    bfloat16 arrays travel both ways as uint16 under `NAME.bfloat16`. RuntimeError shows what the program wrote,
    ValueError says that there is no such program.
    """
    if not command or shutil.which(command[0]) is None:
        raise ValueError(f"program is {' '.join(command)!r}, expected a command that can be run")

    def call(*arrays, **keywords):
        named = {str(i): x for i, x in enumerate(arrays)} | {
            n: x for n, x in keywords.items() if hasattr(x, "shape")
        }
        options = {name: value for name, value in keywords.items() if name not in named}
        with tempfile.TemporaryDirectory() as folder:
            given, returned = Path(folder) / "in.npz", Path(folder) / "out.npz"
            np.savez(given, options=json.dumps(options), **dict(packed(n, np.asarray(x)) for n, x in named.items()))
            result = subprocess.run([*command, given, returned], capture_output=True, text=True, timeout=seconds)
            if result.returncode or not returned.exists():
                raise RuntimeError(f"{command[0]} exited with {result.returncode}: {result.stderr[-500:]}")
            with np.load(returned, allow_pickle=False) as file:
                outputs = dict(unpacked(name, file[name]) for name in file)
        return tuple(outputs[str(i)] for i in range(len(outputs)))

    call.__name__ = Path(command[0]).name
    return call


def packed(name: str, x: np.ndarray) -> tuple[str, np.ndarray]:
    """An array as .npz can hold it."""
    return (f"{name}.bfloat16", x.view(np.uint16)) if x.dtype == ml_dtypes.bfloat16 else (name, x)


def unpacked(name: str, x: np.ndarray) -> tuple[str, np.ndarray]:
    """The array that `packed` hid."""
    plain = name.removesuffix(".bfloat16")
    return (plain, x) if plain == name else (plain, x.view(ml_dtypes.bfloat16))
