"""Cross-entropy of each token: how surprised the model was, in nats.

    nll = -log softmax(logits)_target = log sum_v exp(logits_v) - logits_target

A negative target (padding, or -100 by custom) is not scored: its nll is 0.

Over a large vocabulary the float32 copies of the logits are what fills the memory. `blocked_cross_entropy` widens
one block at a time and keeps a running maximum and sum, the online softmax of Milakov and Gimelshein 2018,
arXiv:1805.02867.
"""

import jax
import jax.numpy as jnp
import numpy as np

from .shapes import shaped


def cross_entropy_ref(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The definition: logits [... v], targets [...] below v -> float64 [...]."""
    rows = np.asarray(logits, np.float64).reshape(-1, np.shape(logits)[-1])
    nll = np.zeros(len(rows))
    for row, target in enumerate(np.ravel(targets)):
        if target >= 0:
            peak = rows[row].max()
            nll[row] = peak + np.log(np.sum(np.exp(rows[row] - peak))) - rows[row, target]
    return nll.reshape(np.shape(targets))


@shaped("logits: ... v float, targets: ... int")
def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """logits [... v], targets [...] below v -> float32 or wider [...].

    ValueError if the leading dimensions differ.
    """
    check_leading("cross_entropy", logits, targets)
    wide = logits.astype(np.promote_types(logits.dtype, np.float32))
    hit = jnp.take_along_axis(wide, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    return jnp.where(targets >= 0, jax.nn.logsumexp(wide, axis=-1) - hit, 0)


@shaped("logits: ... v float, targets: ... int")
def blocked_cross_entropy(logits: jax.Array, targets: jax.Array, *, block: int = 4096) -> jax.Array:
    """As `cross_entropy`, over `block` tokens of the vocabulary at a time. ValueError also for a block below 1."""
    check_leading("blocked_cross_entropy", logits, targets)
    if block < 1:
        raise ValueError(f"blocked_cross_entropy: block is {block}, expected 1 or more")
    v, wide = logits.shape[-1], np.promote_types(logits.dtype, np.float32)
    block = min(block, v)
    blocks = -(-v // block)
    margins = [(0, 0)] * targets.ndim + [(0, blocks * block - v)]
    logits = jnp.pad(logits, margins, constant_values=-jnp.inf)

    def step(i: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]):
        peak, total, hit = state
        part = jax.lax.dynamic_slice_in_dim(logits, i * block, block, axis=-1).astype(wide)
        higher = jnp.maximum(peak, jnp.max(part, axis=-1))
        safe = jnp.where(higher == -jnp.inf, 0, higher)  # nothing finite yet: -inf - -inf would be NaN
        total = total * jnp.exp(peak - safe) + jnp.sum(jnp.exp(part - safe[..., None]), axis=-1)
        place = (targets - i * block)[..., None]
        found = jnp.max(jnp.where(jnp.arange(block, dtype=place.dtype) == place, part, -jnp.inf), axis=-1)
        return higher, total, jnp.maximum(hit, found)

    nothing = jnp.full(targets.shape, -jnp.inf, wide)
    peak, total, hit = jax.lax.fori_loop(0, blocks, step, (nothing, jnp.zeros(targets.shape, wide), nothing))
    return jnp.where(targets >= 0, peak + jnp.log(total) - hit, 0)


def check_leading(op: str, logits: jax.Array, targets: jax.Array) -> None:
    """ValueError unless there is one target for each row of logits."""
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"{op}: targets has shape {list(targets.shape)}, expected {list(logits.shape[:-1])}")
