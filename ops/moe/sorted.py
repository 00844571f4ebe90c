"""Tokens sorted by expert, so that each expert multiplies one block of rows (definition in `ref.py`).

The products over blocks of different heights are `lax.ragged_dot`, the grouped GEMM of MegaBlocks (Gale et al.
2022, arXiv:2211.15841): no padding, no token dropped, m / e of the dense work.
"""

from collections.abc import Callable

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
    e, wide = w_gate.shape[0], np.promote_types(x.dtype, np.float32)
    check_experts("moe_sorted", experts, e)

    def run(rows: jax.Array, sizes: jax.Array) -> jax.Array:
        def grouped(rows: jax.Array, w: jax.Array) -> jax.Array:
            return jax.lax.ragged_dot(rows, w, sizes, preferred_element_type=wide)

        return grouped(swiglu(grouped(rows, w_gate), grouped(rows, w_up)).astype(x.dtype), w_down)

    return through_experts(run, jnp.asarray(x), weights, experts, e)[0]


def through_experts(
    run: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, weights: jax.Array, experts: jax.Array, e: int
) -> tuple[jax.Array, jax.Array]:
    """What the experts of a token make of it, added by its weights: x [t d], weights and experts [t m] -> [t d].

    run(rows, sizes) puts rows [t*m d], sorted by expert, through the experts 0 … e-1, which serve sizes i32 [e] of
    them; sizes is the second result. Where a token names expert e it goes to none: such rows come last, and
    whatever run makes of them counts nothing.
    """
    (t, m), wide = experts.shape, np.promote_types(x.dtype, np.float32)
    expert = jnp.ravel(experts)  # of pair token * m + slot
    order = jnp.argsort(expert)
    sizes = jnp.bincount(expert, length=e).astype(jnp.int32)
    y = run(x[order // m], sizes)[jnp.argsort(order)].reshape(t, m, -1)  # back in the order of pairs
    y = jnp.where((experts < e)[:, :, None], weights.astype(wide)[:, :, None] * y.astype(wide), 0)
    return jnp.sum(y, axis=1).astype(x.dtype), sizes
