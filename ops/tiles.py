"""What kernels need to cut arrays into tiles."""

import jax
import jax.numpy as jnp


def round_up(n: int, multiple: int) -> int:
    """The least multiple that is not below n."""
    return -(-n // multiple) * multiple


def fill_up(x: jax.Array, axis: int, multiple: int, value: int = 0) -> jax.Array:
    """`x` with `value` at the end of an axis, up to a multiple of so many."""
    ends = [(0, 0)] * x.ndim
    ends[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, ends, constant_values=value)
