"""Every expert on every token, then the weighted sum (definition in `ref.py`): e / m times the work, no sorting.

What an expert makes of a token that did not choose it is taken out by `where`: it may have overflowed, and
0 * inf is NaN.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ..activations import swiglu
from ..shapes import shaped
from .contract import CONTRACT, check_experts


@shaped(CONTRACT)
def moe_dense(
    x: jax.Array, weights: jax.Array, experts: jax.Array, w_gate: jax.Array, w_up: jax.Array, w_down: jax.Array
) -> jax.Array:
    """Arguments as in `moe_ref` -> [t d] in x's dtype, summed in float32 or wider.

    ValueError for an expert outside 0 … e-1 or twice in a token, if the values are known (not under jit).
    """
    e, wide = w_gate.shape[0], np.promote_types(x.dtype, np.float32)
    check_experts("moe_dense", experts, e)
    gate = jnp.einsum("td,edf->etf", x, w_gate, preferred_element_type=wide)
    up = jnp.einsum("td,edf->etf", x, w_up, preferred_element_type=wide)
    hidden = swiglu(gate, up).astype(x.dtype)
    y = jnp.einsum("etf,efd->etd", hidden, w_down, preferred_element_type=wide)

    chosen = jnp.asarray(experts) == jnp.arange(e, dtype=experts.dtype)[:, None, None]  # e t m
    weight = jnp.sum(jnp.where(chosen, weights.astype(wide), 0), axis=2)  # e t
    y = jnp.where(jnp.any(chosen, axis=2)[:, :, None], weight[:, :, None] * y, 0)
    return jnp.sum(y, axis=0).astype(x.dtype)
