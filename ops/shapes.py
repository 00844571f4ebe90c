"""`@shaped`: the dimensions of every argument, written once, checked, and free after jit.

    @shaped("q: b t h k, k: b s g k, pos: b t int")
    def op(q, k, pos=None): ...

A letter must mean one size in all arguments of a call. `...` stands for any leading dimensions, `int`, `bool`
and `float` demand that kind of dtype, and an argument that is None is not checked. The check reads shapes
only, so under `jax.jit` it runs while tracing and leaves nothing in the compiled program.
"""

import functools
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

KINDS = {"int": jnp.integer, "bool": jnp.bool_, "float": jnp.floating}


class Contract(NamedTuple):
    """What one argument must look like: `dims` by letter, and the dtype `kind` or None."""

    dims: tuple[str, ...]
    kind: str | None


def parse(spec: str) -> dict[str, Contract]:
    """Read `"q: b t h k, pos: b t int"` into a contract an argument."""
    contracts = {}
    for part in spec.split(","):
        name, _, words = part.partition(":")
        dims = tuple(word for word in words.split() if word not in KINDS)
        kinds = [word for word in words.split() if word in KINDS]
        contracts[name.strip()] = Contract(dims, kinds[0] if kinds else None)
    return contracts


def shaped(spec: str):
    """Check the arguments named in `spec` on each call; ValueError names the argument and the letters."""
    contracts = parse(spec)

    def decorate(function):
        signature = inspect.signature(function)
        unknown = set(contracts) - set(signature.parameters)
        if unknown:
            raise TypeError(f"{function.__name__} has no argument {', '.join(sorted(unknown))}")

        @functools.wraps(function)
        def checked(*args, **kwargs):
            given = signature.bind(*args, **kwargs).arguments
            sizes: dict[str, tuple[int, str]] = {}
            for name, contract in contracts.items():
                if given.get(name) is not None:
                    check(function.__name__, name, given[name], contract, sizes)
            return function(*args, **kwargs)

        checked.contracts = contracts  # pyright: ignore[reportAttributeAccessIssue]
        return checked

    return decorate


def check(op: str, name: str, value: Any, contract: Contract, sizes: dict[str, tuple[int, str]]) -> None:
    """Hold one argument to its contract; `sizes` remembers, per letter, its size and who set it."""
    if not hasattr(value, "shape"):
        raise ValueError(f"{op}: {name} is a {type(value).__name__}, expected an array")
    shape, dims = tuple(value.shape), contract.dims
    wanted = f"[{' '.join(dims)}]"
    if dims[:1] == ("...",):
        dims = dims[1:]
        shape = shape[max(len(shape) - len(dims), 0) :]
    if len(shape) != len(dims):
        raise ValueError(f"{op}: {name} has shape {list(value.shape)}, expected {wanted}")
    for letter, size in zip(dims, shape, strict=True):
        known, owner = sizes.setdefault(letter, (size, name))
        if size != known:
            raise ValueError(f"{op}: {name} {wanted} has {letter} = {size}, but {owner} has {letter} = {known}")
    if contract.kind and not is_kind(value.dtype, contract.kind):
        raise ValueError(f"{op}: {name} {wanted} has dtype {value.dtype}, expected {contract.kind}")


def widened(x: jax.Array) -> jax.Array:
    """The same values in float32 or wider."""
    return x.astype(np.promote_types(x.dtype, np.float32))


def is_kind(dtype: Any, kind: str) -> bool:
    """Whether `dtype` is of the family `int`, `bool` or `float` (bfloat16 and the fp8 types are floats)."""
    return jnp.issubdtype(dtype, KINDS[kind])
