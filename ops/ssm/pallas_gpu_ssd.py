"""State-space duality for GPUs (Dao and Gu 2024, arXiv:2405.21060, section 6), in Pallas on its Triton backend.

The chunked form: matrix products within a chunk of tokens, the recurrence from chunk to chunk. As in
`pallas_gpu.py` a program keeps its state in registers from the first token to the last (other forms: `ssd.py`).

    grid      tiles of `k_block` channels, heads, sequences; channels share a decay, but do not know of each other
    state     [n, k_block], in registers, as tiles of `N_BLOCK` rows, which are multiplied one after the other:
              of no more at a time are the factors in registers, too (ptxas counts what spills)
    time      a loop over chunks of `chunk` tokens. A token that is padding is not read and takes a step of 0
    B, C      those of the head's group, read again for each of its heads and tiles
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from ..pallas_gpu import chosen_sides, product_in_pieces, read, run, side, write
from ..shapes import shaped
from .pallas_gpu import Inputs
from .ssd import SHAPES, check_groups

N_BLOCK = 32


@shaped(SHAPES)
def ssd_gpu(
    x: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    D: jax.Array | None = None,
    *,
    dt_bias: jax.Array | None = None,
    softplus: bool = False,
    state: jax.Array | None = None,
    lengths: jax.Array | None = None,
    return_states: bool = False,
    chunk: int = 16,
    k_block: int = 32,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Arguments and result as in `ssd_ref`; y in x's dtype, the state in float32.

    With `return_states` a chunk is one token. ValueError if h is not a multiple of g, or if `chunk`, the tokens of
    a chunk, or `k_block`, the channels of a program, is not a power of two of at least 16. `interpret` as in
    `ops/pallas_gpu.py`.
    """
    op, (b, t, h, k), n = "ssd_gpu", x.shape, B.shape[3]
    check_groups(op, x, B)
    chunk, k_block = chosen_sides(op, x.dtype, chunk=chunk, k_block=k_block)
    chunk, k_block = 1 if return_states else min(chunk, side(t)), min(k_block, side(k))
    states = (b, t, h, k, n) if return_states else (b, h, k, n)
    return run(
        partial(ssd_kernel, chunk=chunk, k_block=k_block, softplus=softplus, return_states=return_states),
        (pl.cdiv(k, k_block), h, b),
        Inputs(x, dt, A, B, C, D, dt_bias, state, lengths),
        (jax.ShapeDtypeStruct(x.shape, x.dtype), jax.ShapeDtypeStruct(states, jnp.float32)),
        name=op,
        warps=4,
        interpret=interpret,
    )


def ssd_kernel(
    given: Inputs, y_ref: Any, states_ref: Any, *, chunk: int, k_block: int, softplus: bool, return_states: bool
) -> None:
    """Some channels of one head of one sequence, chunk after chunk; times are s for what comes in, t for y."""
    h, b = pl.program_id(1), pl.program_id(2)
    (_, times, heads, channels), (groups, n) = given.x.shape, given.B.shape[2:]
    g = jax.lax.div(h, jnp.int32(heads // groups))
    k, place = (jnp.arange(size, dtype=jnp.int32) for size in (k_block, side(chunk)))
    k, inside = pl.program_id(0) * k_block + k, place < chunk
    k_real = k < channels
    entries = [first + jnp.arange(N_BLOCK, dtype=jnp.int32) for first in range(0, n, N_BLOCK)]
    length = jnp.int32(times) if given.lengths is None else given.lengths[b]
    A = given.A[h].astype(jnp.float32)
    D, dt_bias = (ref if ref is None else ref[h].astype(jnp.float32) for ref in (given.D, given.dt_bias))

    def part(entry: jax.Array, *of: Any) -> tuple[tuple, jax.Array]:  # where these entries are, and which are real
        return (*of, k[None], entry[:, None]), (entry < n)[:, None] & k_real[None]

    def step(i: jax.Array, states: list[jax.Array]) -> list[jax.Array]:
        now = i * chunk + place
        real = inside & (now < length)
        x = read(given.x, (b, now[:, None], h, k[None]), real[:, None] & k_real[None])  # s k
        dt = read(given.dt, (b, now, h), real).astype(jnp.float32)
        dt = dt if dt_bias is None else dt + dt_bias
        dt = jnp.where(real, jax.nn.softplus(dt) if softplus else dt, 0)
        between, from_start, to_end, through = decays(dt * A)
        added, after = (to_end * dt)[:, None] * x.astype(jnp.float32), []
        weights, y = (jnp.zeros((len(place), size), jnp.float32) for size in (len(place), k_block))
        for entry, state in zip(entries, states, strict=True):
            B = read(given.B, (b, now[None], g, entry[:, None]), (entry < n)[:, None] & real[None])  # n s
            C = read(given.C, (b, now[:, None], g, entry[None]), real[:, None] & (entry < n)[None])  # t n
            weights += product_in_pieces(C, B)
            y += product_in_pieces(C, state)
            after.append(through * state + product_in_pieces(B, added))
            if return_states:
                write(states_ref, *part(entry, b, i, h), after[-1])
        y = product_in_pieces(between * weights * dt[None], x) + from_start[:, None] * y
        y = y if D is None else y + D * x.astype(jnp.float32)
        write(y_ref, (b, now[:, None], h, k[None]), (inside & (now < times))[:, None] & k_real[None], y)
        return after

    states = [jnp.zeros((N_BLOCK, k_block), jnp.float32)] * len(entries)
    if given.state is not None:
        states = [read(given.state, *part(entry, b, h)).astype(jnp.float32) for entry in entries]
    states = jax.lax.fori_loop(0, pl.cdiv(times, chunk), step, states)
    if not return_states:
        for entry, state in zip(entries, states, strict=True):
            write(states_ref, *part(entry, b, h), state)


def decays(log_decay: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """What is left at t of what came in at s [t s], 0 if s > t; of the state at t [t]; at the end: of s [s], of it.

    Each sum is taken over its own terms: a difference of two sums would cancel (see `decay_between` in `steps.py`).
    """
    place = jnp.arange(log_decay.shape[0], dtype=jnp.int32)
    u, s = place[:, None], place[None]
    terms = jnp.where(u > s, log_decay[:, None], 0)
    between = jnp.where(u >= s, jnp.exp(jnp.cumsum(terms, axis=0)), 0)
    from_start, to_end = jnp.exp(jnp.cumsum(log_decay)), jnp.exp(jnp.sum(terms, axis=0))
    return between, from_start, to_end, jnp.exp(jnp.sum(log_decay))
