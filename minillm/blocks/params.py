"""What blocks are put together from: linear layers and norms, asked for by name and shape.

The same requests serve every origin of weights: a checkpoint reads the tensors, `minillm.init` draws them, and
shapes alone are enough to compile a program.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ..config import Config
from ..ops import layer_norm, rms_norm
from ..quant import Dense, Weight

Shape = tuple[int, ...]
Init = Callable[[np.random.Generator, Shape], np.ndarray]

# get(name, layer, *shapes, init=...) -> array: several shapes are those of tensors below one another. `init`
# draws the array of a model that was never trained.
Get = Callable[..., Any]


def stacked(shapes: tuple[Shape, ...]) -> jax.ShapeDtypeStruct:
    """The float32 shape of tensors below one another."""
    return jax.ShapeDtypeStruct((sum(shape[0] for shape in shapes), *shapes[0][1:]), np.float32)


class Linear(Protocol):
    """x [..., in] @ self -> [..., out]: a `Weight`, or one with a bias."""

    def __rmatmul__(self, x: jax.Array) -> jax.Array: ...


class Experts(Protocol):
    """A linear layer for each expert: x [rows, in] sorted by expert, sizes i32 [e] rows of each -> [rows, out]."""

    def grouped(self, x: jax.Array, sizes: jax.Array) -> jax.Array: ...


class Norm(Protocol):
    """x [..., d] -> [..., d]."""

    def __call__(self, x: jax.Array) -> jax.Array: ...


def normal(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Entries of variance 1 / in, for arrays [..., out, in]: a product keeps the size of its input."""
    return rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[-1]))


def ones(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """For norms."""
    return np.ones(shape, np.float32)


def zeros(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """For biases."""
    return np.zeros(shape, np.float32)


@dataclass(frozen=True)
class Params:
    """The parameters of one layer, or of the model as a whole (layer None), under a prefix."""

    get: Get = field(repr=False)
    config: Config
    layer: int | None = None
    prefix: str = ""

    def under(self, name: str) -> "Params":
        """Those whose names begin with `name.`."""
        return Params(self.get, self.config, self.layer, f"{self.prefix}{name}.")

    def array(self, name: str, *shapes: Shape, init: Init = normal) -> jax.Array:
        """One array, made of tensors of these shapes below one another."""
        return self.get(self.prefix + name, self.layer, *shapes, init=init)

    def linear(self, name: str, size_in: int, *sizes_out: int, bias: bool = False) -> Linear:
        """A linear layer (in, out) whose outputs come from one or several matrices side by side."""
        weight = Dense(self.array(name, *((size, size_in) for size in sizes_out))).T
        if not bias:
            return weight
        return Biased(weight, self.array(f"{name}.bias", *((size,) for size in sizes_out), init=zeros))

    def experts(self, name: str, e: int, size_in: int, size_out: int, bias: bool = False) -> Experts:
        """A linear layer (in, out) for each of e experts."""
        weight = Dense(self.array(name, (e, size_out, size_in))).T
        return Biased(weight, self.array(f"{name}.bias", (e, size_out), init=zeros)) if bias else weight

    def norm(self, name: str, size: int | None = None) -> Norm:
        """A norm of the model's kind over `size` channels, d by default."""
        shape = (self.config.d if size is None else size,)
        weight = self.array(name, shape, init=ones)
        if self.config.norm == "rms":
            return RMSNorm(weight, self.config.eps)
        return LayerNorm(weight, self.array(f"{name}.bias", shape, init=zeros), self.config.eps)


@struct.dataclass
class Biased:
    """A linear layer with a bias: x @ self is x @ weight + bias; of experts, each has its own, bias [e, out]."""

    weight: Weight
    bias: jax.Array

    __array_ufunc__ = None

    def __rmatmul__(self, x: jax.Array) -> jax.Array:
        return x @ self.weight + self.bias.astype(x.dtype)

    def grouped(self, x: jax.Array, sizes: jax.Array) -> jax.Array:
        bias = jnp.repeat(self.bias.astype(x.dtype), sizes, axis=0, total_repeat_length=len(x))
        return self.weight.grouped(x, sizes) + bias


@struct.dataclass
class RMSNorm:
    """Root-mean-square norm; weight [d]."""

    weight: jax.Array
    eps: float = struct.field(pytree_node=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.weight, self.eps)


@struct.dataclass
class LayerNorm:
    """Layer norm; weight and bias [d]."""

    weight: jax.Array
    bias: jax.Array
    eps: float = struct.field(pytree_node=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        return layer_norm(x, self.weight, self.bias, self.eps)
