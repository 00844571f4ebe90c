"""Tokens sorted by expert, so that each expert multiplies one block of rows (definition in `ref.py`).

The products over blocks of different heights are `lax.ragged_dot`, the grouped GEMM of MegaBlocks (Gale et al.
2022, arXiv:2211.15841): no padding, no token dropped, m / e of the dense work.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ..activations import swiglu
from ..shapes import shaped
from .contract import CONTRACT, check_experts


@shaped(CONTRACT)
def moe_sorted(
    x: jax.Array, weights: jax.Array, experts: jax.Array, w_gate: jax.Array, w_up: jax.Array, w_down: jax.Array
) -> jax.Array:
    """Arguments as in `moe_ref` -> [t d] in x's dtype, summed in float32 or wider.

    ValueError for an expert outside 0 … e-1 or twice in a token, if the values are known (not under jit).
    """
    (t, m), e, wide = experts.shape, w_gate.shape[0], np.promote_types(x.dtype, np.float32)
    check_experts("moe_sorted", experts, e)
    expert = jnp.ravel(experts)  # of pair token * m + slot
    order = jnp.argsort(expert)
    rows = jnp.asarray(x)[order // m]
    sizes = jnp.bincount(expert, length=e).astype(jnp.int32)

    def grouped(rows: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.ragged_dot(rows, w, sizes, preferred_element_type=wide)

    hidden = swiglu(grouped(rows, w_gate), grouped(rows, w_up)).astype(x.dtype)
    y = grouped(hidden, w_down)[jnp.argsort(order)].reshape(t, m, -1)  # back in the order of pairs
    return jnp.sum(weights.astype(wide)[:, :, None] * y, axis=1).astype(x.dtype)
