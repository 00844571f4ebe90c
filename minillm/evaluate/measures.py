"""What is measured at each token, on the device: logits [t, v] stay there, and a few numbers a token come back."""

import jax
import jax.numpy as jnp

from ..model import Model
from ..ops import cross_entropy
from ..span import Span

ROWS = 128  # tokens whose logits are in memory at once
NAMES = ("nll", "reference_nll", "kld", "same_top")  # without a reference only the first


@jax.jit
def measured(models: tuple[Model, ...], tokens: jax.Array, targets: jax.Array, n: jax.Array) -> jax.Array:
    """float32 [NAMES, t], of one model or of one and its reference.

    tokens i32 [1, t], n i32 [1] of them real; targets i32 [1, t], the token after each; t is a power of two.
    """
    t = tokens.shape[1]
    at = Span.chain(jnp.zeros_like(n), n, t)
    hidden = [model.hidden(tokens, None, at)[0][0] for model in models]

    def some(rows: tuple) -> jax.Array:
        states, following = rows
        return compared([model.logits(x) for model, x in zip(models, states, strict=True)], following)

    rows = jax.tree.map(lambda x: x.reshape(-1, min(t, ROWS), *x.shape[1:]), (hidden, targets[0]))
    return jnp.concatenate(list(jax.lax.map(some, rows)), axis=1)


def compared(logits: list[jax.Array], targets: jax.Array) -> jax.Array:
    """logits of one model or of two, each [t, v], targets i32 [t] -> [NAMES, t]."""
    nll = [cross_entropy(one, targets) for one in logits]
    if len(logits) == 1:
        return jnp.stack(nll)
    q, p = logits
    same = jnp.argmax(q, axis=-1) == jnp.argmax(p, axis=-1)
    return jnp.stack([*nll, kl_divergence(p, q), same.astype(nll[0].dtype)])


def kl_divergence(p: jax.Array, q: jax.Array) -> jax.Array:
    """KL(softmax(p) || softmax(q)) in nats of logits [..., v] -> [...].

    sum_v p (ln p - ln q) is a small difference of large terms if p and q are close. As both sum to 1 it is also
    sum_v q - p + p (ln p - ln q), in which no term is negative, and an error in either logsumexp cancels.
    """
    p, q = jax.nn.log_softmax(p), jax.nn.log_softmax(q)
    gap, mass = p - q, jnp.exp(p)
    close = mass * (jnp.expm1(-gap) + gap)
    apart = jnp.exp(q) - mass + jnp.where(mass > 0, mass * gap, 0)
    return jnp.sum(jnp.where(jnp.abs(gap) < 1, close, apart), axis=-1)
