"""Each expert serves a buffer of `capacity` rows (definition: `moe_capacity_ref`): static shapes, plain products.

GShard (Lepikhin et al. 2020, arXiv:2006.16668), Switch Transformer (Fedus et al. 2021, arXiv:2101.03961): a
token's row in an expert's buffer is the number of earlier tokens that chose that expert; beyond capacity it is
dropped.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ..activations import swiglu
from ..shapes import shaped
from .contract import CONTRACT, check_experts


@shaped(CONTRACT)
def moe_capacity(
    x: jax.Array,
    weights: jax.Array,
    experts: jax.Array,
    w_gate: jax.Array,
    w_up: jax.Array,
    w_down: jax.Array,
    *,
    capacity: int | None = None,
) -> jax.Array:
    """Arguments as in `moe_capacity_ref` -> [t d] in x's dtype; by default capacity is t and nothing is dropped.

    ValueError for a capacity below 1, and for an expert outside 0 … e-1 or twice in a token, if the values are
    known (not under jit).
    """
    (t, m), (e, d), wide = experts.shape, w_gate.shape[:2], np.promote_types(x.dtype, np.float32)
    check_experts("moe_capacity", experts, e)
    capacity = t if capacity is None else capacity
    if capacity < 1:
        raise ValueError(f"moe_capacity: capacity is {capacity}, expected 1 or more")
    expert = jnp.ravel(experts).astype(jnp.int32)  # of pair token * m + slot
    chosen = expert[:, None] == jnp.arange(e, dtype=jnp.int32)
    earlier = jnp.cumsum(chosen, axis=0, dtype=jnp.int32) - 1
    row = jnp.take_along_axis(earlier, expert[:, None], axis=1)[:, 0]
    place = jnp.where(row < capacity, expert * capacity + row, e * capacity)  # past the end: dropped

    pairs = jnp.repeat(jnp.asarray(x), m, axis=0)
    buffer = jnp.zeros((e * capacity, d), x.dtype).at[place].set(pairs, mode="drop").reshape(e, capacity, d)
    gate = jnp.einsum("ecd,edf->ecf", buffer, w_gate, preferred_element_type=wide)
    up = jnp.einsum("ecd,edf->ecf", buffer, w_up, preferred_element_type=wide)
    hidden = swiglu(gate, up).astype(x.dtype)
    y = jnp.einsum("ecf,efd->ecd", hidden, w_down, preferred_element_type=wide)

    y = y.reshape(e * capacity, d).at[place].get(mode="fill", fill_value=0).reshape(t, m, d)
    return jnp.sum(weights.astype(wide)[:, :, None] * y, axis=1).astype(x.dtype)
