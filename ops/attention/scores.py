"""Which keys a query sees, and how strongly: what every form of attention shares (definition in `ref.py`).

    score(t, s) = cap(scale * q_t . k_s) - slope * |q_pos_t - k_pos_s|        -inf where t does not see s

`visible` and `scores` take any tile of the t x s matrix, so that a form need never hold the whole of it. A row
that holds no token (k_pos < 0) is taken out by `where`, never by a factor: memory that was never written may
hold anything, and 0 * NaN is NaN.
"""

import jax
import jax.numpy as jnp
import numpy as np

SHAPES = (
    "q: b t h k float, k: b s g k float, v: b s g j float, q_pos: b t int, k_pos: b s int, mask: b t s bool, "
    "q_segment: b t int, k_segment: b s int, sinks: h float, alibi: h float"
)


def check(
    op: str,
    h: int,
    g: int,
    *,
    window: int | None = None,
    softcap: float | None = None,
    q_segment: jax.Array | None = None,
    k_segment: jax.Array | None = None,
) -> None:
    """ValueError if g KV heads do not go evenly into h, or an option cannot be meant."""
    if h % g:
        raise ValueError(f"{op}: q has h = {h} heads, not a multiple of k's g = {g}")
    if window is not None and window < 1:
        raise ValueError(f"{op}: window is {window}, expected at least 1 (a query's own position) or None")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"{op}: softcap is {softcap}, expected more than 0 or None")
    if (q_segment is None) != (k_segment is None):
        missing = "q_segment" if q_segment is None else "k_segment"
        raise ValueError(f"{op}: {missing} is missing, expected both q_segment and k_segment or neither")


def positions(
    op: str, q: jax.Array, k: jax.Array, q_pos: jax.Array | None, k_pos: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """q_pos [b t] and k_pos [b s]; by default 0 … s-1, the queries being the last t (ValueError if t > s)."""
    (b, t), s = q.shape[:2], k.shape[1]
    if q_pos is None and t > s:
        raise ValueError(f"{op}: q has t = {t} > s = {s}; say where the queries stand with q_pos")
    q_pos = jnp.broadcast_to(jnp.arange(s - t, s, dtype=jnp.int32), (b, t)) if q_pos is None else q_pos
    k_pos = jnp.broadcast_to(jnp.arange(s, dtype=jnp.int32), (b, s)) if k_pos is None else k_pos
    return q_pos, k_pos


def visible(
    q_pos: jax.Array,
    k_pos: jax.Array,
    *,
    causal: bool,
    window: int | None,
    mask: jax.Array | None = None,
    q_segment: jax.Array | None = None,
    k_segment: jax.Array | None = None,
) -> jax.Array:
    """Bool [b t s]: does the query at q_pos [b t] see the key at k_pos [b s]? A kernel may leave b out."""
    here, there = q_pos[..., :, None], k_pos[..., None, :]
    seen = (there >= 0) & (here >= 0)
    if causal:
        seen &= there <= here
    if window is not None:
        seen &= jnp.abs(here - there) < window
    if mask is not None:
        seen &= mask
    if q_segment is not None and k_segment is not None:
        seen &= q_segment[:, :, None] == k_segment[:, None, :]
    return seen


def scores(
    q: jax.Array,
    k: jax.Array,
    q_pos: jax.Array,
    k_pos: jax.Array,
    seen: jax.Array,
    *,
    scale: float | None,
    softcap: float | None,
    alibi: jax.Array | None = None,
) -> jax.Array:
    """Scores of q [b t h k] on k [b s g k] -> [b g r t s] in float32 or wider; -inf where not seen [b t s]."""
    (b, t, h, width), g = q.shape, k.shape[2]
    wide = np.promote_types(q.dtype, np.float32)
    q = q.reshape(b, t, g, h // g, width)
    score = jnp.einsum("btgrk,bsgk->bgrts", q, only_tokens(k, k_pos), preferred_element_type=wide)
    score = score * (width**-0.5 if scale is None else scale)
    score = capped(score, softcap)
    if alibi is not None:
        distance = jnp.abs(q_pos[:, :, None] - k_pos[:, None, :]).astype(wide)  # b t s
        score = score - alibi.astype(wide).reshape(g, -1, 1, 1) * distance[:, None, None]
    return jnp.where(seen[:, None, None], score, -jnp.inf)


def capped(score: jax.Array, softcap: float | None) -> jax.Array:
    """Scores within -softcap … softcap."""
    return score if softcap is None else softcap * jnp.tanh(score / softcap)


def only_tokens(x: jax.Array, k_pos: jax.Array) -> jax.Array:
    """The rows of x [b s g k] that hold a token; the others are 0, whatever they held."""
    return jnp.where((k_pos >= 0)[:, :, None, None], x, 0)


def add_sinks(y: jax.Array, lse: jax.Array, sinks: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Let logits sinks [h], if any, join the softmax behind y [b t h j] and lse [b t h]: weight, but no value."""
    if sinks is None:
        return y, lse
    sink = sinks.astype(lse.dtype)
    share = jnp.where(lse == -jnp.inf, 0, jax.nn.sigmoid(lse - sink))  # e^lse / (e^lse + e^sink)
    return y * share[..., None], jnp.logaddexp(lse, sink)
