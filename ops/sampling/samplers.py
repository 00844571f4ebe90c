"""One token from a distribution: by inversion, or by the Gumbel-max trick.

Inversion walks along the tokens and stops where the probability passed first exceeds u, uniform in [0, 1). The
other way (Gumbel 1954; Maddison et al. 2014, arXiv:1411.0030) adds independent Gumbel noise to the logits and
takes the largest: no sum over the vocabulary, so parts of it can be drawn on different devices.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ..shapes import shaped


@shaped("probs: b v float, uniforms: b float")
def sample(probs: jax.Array, uniforms: jax.Array) -> jax.Array:
    """Arguments as in `sample_ref` -> tokens int32 [b]; sums in float32 or wider."""
    wide = np.promote_types(probs.dtype, np.float32)
    # A sum made in parallel may creep up where nothing is added: only tokens with a probability can be passed.
    passed = jnp.where(probs > 0, jnp.cumsum(probs.astype(wide), axis=1), 0)
    mark = uniforms.astype(wide) * jnp.max(passed, axis=1)
    return jnp.argmax(passed > mark[:, None], axis=1).astype(jnp.int32)


@shaped("logits: b v float")
def sample_inversion(logits: jax.Array, *, seed: int) -> jax.Array:
    """Draw from softmax(logits) [b v] -> tokens int32 [b], each row on its own."""
    wide = np.promote_types(logits.dtype, np.float32)
    uniforms = jax.random.uniform(jax.random.key(seed), logits.shape[:1], wide)
    return sample(jax.nn.softmax(logits.astype(wide), axis=1), uniforms)


@shaped("logits: b v float")
def sample_gumbel(logits: jax.Array, *, seed: int) -> jax.Array:
    """Draw from softmax(logits) [b v] -> tokens int32 [b], each row on its own."""
    wide = np.promote_types(logits.dtype, np.float32)
    noise = jax.random.gumbel(jax.random.key(seed), logits.shape, wide)
    return jnp.argmax(logits.astype(wide) + noise, axis=1).astype(jnp.int32)
