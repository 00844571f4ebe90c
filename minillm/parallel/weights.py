"""The few parts of a device's model that know of the others: what they hold is a piece, what they give is whole.

They stand where a weight or a norm stands in an ordinary model, and do the same with one collective more. They run
inside `jax.shard_map`, where arrays are the device's own and axes of the mesh have names.
"""

from dataclasses import fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ..blocks import Mamba2
from ..quant.dynamic import BESIDE, Dynamic
from ..quant.scaled import Scaled


@struct.dataclass
class Summed:
    """A weight of whose inputs every device has some: what the devices make of theirs is added up."""

    weight: Any
    axes: tuple[str, ...] = struct.field(pytree_node=False)

    __array_ufunc__ = None

    def __rmatmul__(self, x: jax.Array) -> jax.Array:
        return jax.lax.psum(x @ self.weight, self.axes)

    def grouped(self, x: jax.Array, sizes: jax.Array) -> jax.Array:
        """Each group's rows by its own matrix, as in `quant`."""
        return jax.lax.psum(self.weight.grouped(x, sizes), self.axes)


@struct.dataclass
class WholeTokens:
    """A weight that rounds x with a scale a token, of whose inputs every device has some.

    Devices tell each other the largest of theirs, so that the scale is that of the whole token.
    """

    weight: Dynamic
    axis: str = struct.field(pytree_node=False)

    __array_ufunc__ = None

    @property
    def shape(self) -> tuple[int, int]:
        """(in, out)."""
        return self.weight.shape

    def __rmatmul__(self, x: jax.Array) -> jax.Array:
        return self.told(x) @ self.weight

    def grouped(self, x: jax.Array, sizes: jax.Array) -> jax.Array:
        """Each group's rows by its own matrix, as in `quant`."""
        return self.weight.grouped(self.told(x), sizes)

    def told(self, x: jax.Array) -> jax.Array:
        """x [..., in], with the largest number of whole tokens beside it."""
        largest = jax.lax.pmax(jnp.max(jnp.abs(x), axis=-1, keepdims=True), self.axis)
        return jnp.concatenate([x, jnp.broadcast_to(largest, (*x.shape[:-1], BESIDE))], axis=-1)


def for_whole_tokens(weight: Any, axis: str) -> Any:
    """A weight of whose inputs every device has some; `WholeTokens` if it rounds x with a scale a token."""
    if isinstance(weight, Scaled):
        return Scaled(for_whole_tokens(weight.weight, axis), weight.factors, weight.transposed)
    by_token = isinstance(weight, Dynamic) and weight.product.by_token
    return WholeTokens(weight, axis) if by_token else weight


@struct.dataclass
class OwnExperts:
    """The matrices of this device's experts, e / devices of them; rows of others' experts give zeros."""

    weight: Any
    axis: str = struct.field(pytree_node=False)

    def grouped(self, x: jax.Array, sizes: jax.Array) -> jax.Array:
        """x [rows, in] sorted by expert, sizes i32 [e] of all -> [rows, out]."""
        count = len(sizes) // jax.lax.axis_size(self.axis)
        first = jax.lax.axis_index(self.axis) * count
        others = jnp.sum(jnp.where(jnp.arange(len(sizes), dtype=jnp.int32) < first, sizes, 0))  # rows before ours
        own = jax.lax.dynamic_slice_in_dim(sizes, first, count)
        return jnp.roll(self.weight.grouped(jnp.roll(x, -others, axis=0), own), others, axis=0)


@struct.dataclass
class Vocabulary:
    """An embedding (v, d) of which every device has some tokens' rows; its transpose is a head."""

    weight: Any
    v: int = struct.field(pytree_node=False)
    axis: str = struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, int]:
        """(v, d)."""
        return self.v, self.weight.shape[1]

    @property
    def T(self) -> "Head":
        """The head (d, v) that is tied to it."""
        return Head(self.weight.T, self.v, self.axis)

    def rows(self, ids: jax.Array) -> jax.Array:
        """ids [...] -> [..., d] from the one device that has them; an id out of range gives NaN."""
        count = self.weight.shape[0]
        own = ids - jax.lax.axis_index(self.axis) * count
        mine = ((own >= 0) & (own < count))[..., None]
        found = jax.lax.psum(jnp.where(mine, self.weight.rows(jnp.clip(own, 0, count - 1)), 0), self.axis)
        return jnp.where(((ids >= 0) & (ids < self.v))[..., None], found, jnp.nan)


@struct.dataclass
class Head:
    """A head (d, v) of which every device has some tokens' columns: what each makes of x is put side by side."""

    weight: Any
    v: int = struct.field(pytree_node=False)
    axis: str = struct.field(pytree_node=False)

    __array_ufunc__ = None

    def __rmatmul__(self, x: jax.Array) -> jax.Array:
        y = x @ self.weight
        return jax.lax.all_gather(y, self.axis, axis=y.ndim - 1, tiled=True)[..., : self.v]


@struct.dataclass
class SharedRMSNorm:
    """RMSNorm of vectors of which every device has some channels, all devices equally many; weight its own."""

    weight: jax.Array
    eps: float = struct.field(pytree_node=False)
    axis: str = struct.field(pytree_node=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        return shared_rms_norm(x, self.weight, self.eps, self.axis)


def shared_rms_norm(
    x: jax.Array, weight: jax.Array, eps: float, axis: str, groups: list[list[int]] | None = None
) -> jax.Array:
    """RMSNorm over the channels of all devices together, or of each group of them: x [..., i] -> [..., i]."""
    wide = np.promote_types(x.dtype, np.float32)
    x_wide = x.astype(wide)
    own = jnp.mean(jnp.square(x_wide), axis=-1, keepdims=True)
    scale = jax.lax.rsqrt(jax.lax.pmean(own, axis, axis_index_groups=groups) + eps)
    return (x_wide * scale * weight.astype(wide)).astype(x.dtype)


@struct.dataclass
class SharedMamba2(Mamba2):
    """Mamba-2 whose groups of heads are larger than what a device has of them: `sharers` have one together.

    They are normed as one, which is what a group is about. (With as many groups as devices nothing would be sent;
    that is why models made for many devices have several: Mamba-2, section 8.1.)
    """

    axis: str = struct.field(pytree_node=False, kw_only=True)
    sharers: int = struct.field(pytree_node=False, kw_only=True)

    @staticmethod
    def like(block: Mamba2, axis: str, sharers: int) -> "SharedMamba2":
        """The same block as part of a group."""
        parts = {field.name: getattr(block, field.name) for field in fields(block)}
        return SharedMamba2(**parts, axis=axis, sharers=sharers)

    def normed(self, y: jax.Array) -> jax.Array:
        """RMSNorm of y [b t i] together with the others of the group."""
        devices = range(jax.lax.axis_size(self.axis))
        groups = [list(devices[first : first + self.sharers]) for first in devices[:: self.sharers]]
        return shared_rms_norm(y, self.y_norm, self.eps, self.axis, groups)
