"""Speculative sampling for a whole batch at once (definition in `speculative_ref.py`).

All places are judged in parallel; how many are kept is the length of the unbroken run of yeses.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ..shapes import shaped
from .samplers import sample


@shaped("draft: b m int, draft_probs: b m v float, target_probs: b j v float, uniforms: b j float")
def accept(
    draft: jax.Array, draft_probs: jax.Array, target_probs: jax.Array, uniforms: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Arguments as in `accept_ref` -> tokens int32 [b m+1], n_accepted int32 [b].

    ValueError unless target_probs and uniforms have m + 1 places.
    """
    m, places = draft.shape[1], target_probs.shape[1]
    if places != m + 1:
        raise ValueError(f"accept: target_probs [b j v] has j = {places}, expected m + 1 = {m + 1}")
    wide = np.promote_types(target_probs.dtype, np.float32)
    p, q, u = (x.astype(wide) for x in (target_probs, draft_probs, uniforms))
    draft = jnp.asarray(draft, jnp.int32)

    def at_draft(probs: jax.Array) -> jax.Array:
        return jnp.take_along_axis(probs, draft[:, :, None], axis=2)[:, :, 0]  # b m

    kept = u[:, :m] * at_draft(q) < at_draft(p[:, :m])
    n_accepted = jnp.sum(jnp.cumprod(kept.astype(jnp.int32), axis=1), axis=1, dtype=jnp.int32)

    q = jnp.pad(q, ((0, 0), (0, 1), (0, 0)))  # nothing is drafted for the last place: its residual is p
    p_next, q_next = (jnp.take_along_axis(x, n_accepted[:, None, None], axis=1)[:, 0] for x in (p, q))
    residual = jnp.maximum(p_next - q_next, 0)
    residual = jnp.where(jnp.any(residual > 0, axis=1, keepdims=True), residual, p_next)
    next_token = sample(residual, u[:, m])

    place, end = jnp.arange(m + 1, dtype=jnp.int32), n_accepted[:, None]
    drafted = jnp.pad(draft, ((0, 0), (0, 1)))
    return jnp.where(place < end, drafted, jnp.where(place == end, next_token[:, None], -1)), n_accepted


@shaped("draft: b m int, parent: b m int, draft_probs: b m v float, target_probs: b j v float, uniforms: b j float")
def accept_tree(
    draft: jax.Array, parent: jax.Array, draft_probs: jax.Array, target_probs: jax.Array, uniforms: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Arguments as in `accept_tree_ref` -> tokens int32 [b m+1], path int32 [b m], n_accepted int32 [b].

    ValueError unless target_probs and uniforms have m + 1 places.
    """
    (b, m), places = draft.shape, target_probs.shape[1]
    if places != m + 1:
        raise ValueError(f"accept_tree: target_probs [b j v] has j = {places}, expected m + 1 = {m + 1}")
    wide = np.promote_types(target_probs.dtype, np.float32)
    p, q, u = (x.astype(wide) for x in (target_probs, draft_probs, uniforms))
    draft, parent = jnp.asarray(draft, jnp.int32), jnp.asarray(parent, jnp.int32)

    def judge(node: jax.Array, so_far: tuple) -> tuple:
        last, left, kept = so_far  # b, b v, b m
        x, q_here, mass = draft[:, node, None], q[:, node], jnp.sum(left, axis=1, keepdims=True)
        drafted, wanted = (jnp.take_along_axis(probs, x, axis=1)[:, 0] for probs in (q_here, left))
        tried = parent[:, node] == last
        keep = tried & (u[:, node] * drafted * mass[:, 0] < wanted)
        residual = jnp.maximum(left - q_here * mass, 0)
        residual = jnp.where(jnp.any(residual > 0, axis=1, keepdims=True), residual, left)
        left = jnp.where(keep[:, None], p[:, node + 1], jnp.where(tried[:, None], residual, left))
        return jnp.where(keep, node, last), left, kept.at[:, node].set(keep)

    start = jnp.full(b, -1, jnp.int32), p[:, 0], jnp.zeros((b, m), bool)
    _, left, kept = jax.lax.fori_loop(0, m, judge, start)
    next_token = sample(left, u[:, m])

    n_accepted = jnp.sum(kept, axis=1, dtype=jnp.int32)
    place = jnp.where(kept, jnp.cumsum(kept, axis=1, dtype=jnp.int32) - 1, m + 1)  # what is not kept goes nowhere
    row, node = jnp.arange(b, dtype=jnp.int32)[:, None], jnp.arange(m, dtype=jnp.int32)
    path = jnp.full((b, m), -1, jnp.int32).at[row, place].set(node, mode="drop")
    tokens = jnp.full((b, m + 1), -1, jnp.int32).at[row, place].set(draft, mode="drop")
    return tokens.at[row[:, 0], n_accepted].set(next_token), path, n_accepted


@shaped("draft: b m int, draft_probs: b m v float, target_probs: b j v float")
def accept_seeded(
    draft: jax.Array, draft_probs: jax.Array, target_probs: jax.Array, *, seed: int
) -> tuple[jax.Array, jax.Array]:
    """`accept` with its uniforms drawn from `seed`."""
    wide = np.promote_types(target_probs.dtype, np.float32)
    uniforms = jax.random.uniform(jax.random.key(seed), target_probs.shape[:2], wide)
    return accept(draft, draft_probs, target_probs, uniforms)
