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
import sysconfig
import tempfile
import traceback
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from ..cases import Arrays, Case, DistributionOp, Op

JUDGE = Path(__file__).parent
NOT_THE_USERS = (str(JUDGE.parent), sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "<")
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
        self.name = getattr(function, "__name__", "kernel")
        self.supports = {**declared(getattr(function, "supports", {})), **declared(supports or {})}
        self.keywords = keywords_of(function)

    def uncovered(self, op: Op | DistributionOp, case: Case, dtype: str, style: str) -> str | None:
        """Why the case is not covered, or None if it is."""
        facts = {
            **case.sizes,
            **defaults_of(op),
            **case.options,
            **dict.fromkeys(case.inputs, True),
            "dtype": dtype,
        }
        facts |= {"style": style} if style != ORDINARY else {}
        return self.undeclared(facts) or self.missing((*case.options, *case.inputs))

    def undeclared(self, facts: Mapping[str, Any]) -> str | None:
        """The first fact that is not among the values declared for it."""
        bad = (name for name, allowed in self.supports.items() if name in facts and facts[name] not in allowed)
        return next((f"{name} = {facts[name]}" for name in bad), None)

    def missing(self, names: Sequence[str]) -> str | None:
        """The first keyword the kernel does not take."""
        known = names if self.keywords is None else self.keywords
        return next((f"no keyword {name!r}" for name in names if name not in known), None)

    def __call__(
        self, op: Op | DistributionOp, arrays: Arrays, options: Mapping[str, Any], order: Literal["C", "F"] = "C"
    ) -> tuple[np.ndarray, ...]:
        """Run it on arrays in the memory order `order` -> its outputs, in its own memory where that can be seen.

        NotCovered if it lacks a keyword or does not declare an option, ValueError if it changes an argument.
        """
        keywords = [name for name in arrays if name not in op.required]
        facts = {**defaults_of(op), **options, **dict.fromkeys(keywords, True)}
        if reason := self.missing((*keywords, *options)) or self.undeclared(facts):
            raise NotCovered(f"{self.name}: {reason}")
        given = {name: to_library(x, self.arrays, order) for name, x in arrays.items()}
        named = {name: given[name] for name in keywords}
        try:
            with np.errstate():  # what a kernel sets there is for itself
                result = self.function(*(given[name] for name in op.required), **named, **options)
        except (Exception, KeyboardInterrupt):
            raise
        except BaseException as error:  # SystemExit, say: it ends the kernel, not the judge
            raise RuntimeError(described(error)) from error
        outputs = tuple(to_numpy(one) for one in as_tuple(result))
        for name, x in given.items():
            if changed(x, arrays[name]):
                raise ValueError(f"{self.name} overwrote its argument {name}")
        return outputs


def declared(supports: Any) -> Supports:
    """ValueError unless names are mapped to the values they may have."""
    if not isinstance(supports, Mapping) or any(
        isinstance(allowed, str) or not isinstance(allowed, Container) for allowed in supports.values()
    ):
        raise ValueError(f"supports is {supports!r}, expected the values allowed by name: {{'k': (64, 128)}}")
    return {name: x.tolist() if isinstance(x, np.ndarray) else x for name, x in supports.items()}


@functools.cache
def defaults_of(op: Op | DistributionOp) -> Mapping[str, Any]:
    """The options that a case may leave to the op, and what they are then; None is no value but their absence."""
    parameters = inspect.signature(op.ref).parameters.values() if isinstance(op, Op) else ()
    return {one.name: one.default for one in parameters if one.default not in (one.empty, None)}


def described(error: BaseException) -> str:
    """What was raised, on one short line that any terminal and any encoding can show."""
    try:
        text = str(error)
    except Exception:  # __str__ is the kernel's code, too; that it raised is reported in place of the message
        text = "(a message that cannot be read)"
    words = "".join(character if character.isprintable() else " " for character in text).split()
    return f"{type(error).__name__}: {' '.join(words)[:500]}"


def raised(error: BaseException) -> str:
    """The fault of a kernel that raised: what, and at which line of the user's own code if that can be seen."""
    place = place_of(error) or (place_of(error.__cause__) if error.__cause__ else None)
    return f"raised {described(error)}" + (f" ({place})" if place else "")


def place_of(error: BaseException) -> str | None:
    """`my_kernels.py:46`, the innermost line that the judge called and that stands in no library."""
    place = None
    for frame in traceback.extract_tb(error.__traceback__):
        if Path(frame.filename).parent == JUDGE:
            place = None  # what comes before called the judge
        elif not frame.filename.startswith(NOT_THE_USERS):
            place = f"{Path(frame.filename).name}:{frame.lineno}"
    return place


def signature_of(op: Op | DistributionOp) -> str:
    """What a kernel is given, arrays by position and then keywords, and what it returns: `x, weight; eps -> y`."""
    keywords = dict.fromkeys(name for case in op.cases for name in (*case.inputs, *case.options))
    for form in op.forms.values() if isinstance(op, DistributionOp) else ():
        keywords |= dict.fromkeys(sorted((keywords_of(form) or set()) - {*op.required}))  # the seed
    given = ", ".join(op.required) + (f"; {', '.join(keywords)}" if keywords else "")
    return f"{given} -> {', '.join(op.outputs)}" if isinstance(op, Op) else given


def changed(given: Any, original: np.ndarray) -> bool:
    """Whether an array is no longer what a kernel was given: overwritten, or donated to JAX."""
    if isinstance(given, jax.Array) and given.is_deleted():
        return True
    now = to_numpy(given)
    return now.tobytes() != original.astype(now.dtype).tobytes()


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


def to_library(x: np.ndarray, library: Library, order: Literal["C", "F"] = "C") -> Any:
    """A fresh array for the kernel. bfloat16 has no NumPy of its own, so it crosses as bits."""
    x = x.copy(order)
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
    """Whatever a kernel returned, on the host: through DLPack where it is neither NumPy nor JAX.

    TypeError if it is no array, or not one of real numbers.
    """
    if hasattr(x, "detach"):  # a torch tensor, perhaps on a device
        x = jnp.from_dlpack(x.detach().cpu().contiguous())
    elif not isinstance(x, np.ndarray | np.generic | float | int | jax.Array):
        if not hasattr(x, "__dlpack__"):
            raise TypeError(f"returned a {type(x).__name__}, expected an array")
        x = x.get() if hasattr(x, "get") else jnp.from_dlpack(x)  # CuPy's are on a device
    y = np.asarray(x)
    if y.dtype.kind not in "biu" and not jnp.issubdtype(y.dtype, jnp.floating):
        raise TypeError(f"returned an array of {y.dtype}, expected real numbers")
    return y


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
            np.savez(given, options=json.dumps(options), **dict(packed(name, x) for name, x in named.items()))
            result = subprocess.run(
                [*command, given, returned], capture_output=True, text=True, errors="replace", timeout=seconds
            )
            if result.returncode or not returned.exists():
                raise RuntimeError(f"{command[0]} exited with {result.returncode}: {result.stderr[-400:]}")
            with np.load(returned, allow_pickle=False) as file:
                outputs = dict(unpacked(name, file[name]) for name in file)
        if set(outputs) != (numbers := {str(i) for i in range(len(outputs))}):
            raise RuntimeError(f"{command[0]} wrote {', '.join(outputs)}, expected {', '.join(sorted(numbers))}")
        return tuple(outputs[str(i)] for i in range(len(outputs)))

    call.__name__ = Path(command[0]).name
    return call


def packed(name: str, x: np.ndarray) -> tuple[str, np.ndarray]:
    """An array as .npz can hold it, in the order of C: not every reader of .npz knows another."""
    x = np.asarray(x, order="C")
    return (f"{name}.bfloat16", x.view(np.uint16)) if x.dtype == ml_dtypes.bfloat16 else (name, x)


def unpacked(name: str, x: np.ndarray) -> tuple[str, np.ndarray]:
    """The array that `packed` hid."""
    plain = name.removesuffix(".bfloat16")
    return (plain, x) if plain == name else (plain, x.view(ml_dtypes.bfloat16))
