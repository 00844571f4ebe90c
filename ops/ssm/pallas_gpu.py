"""The selective scan for GPUs (Gu and Dao 2023, arXiv:2312.00752, section 3.3.2), in Pallas on its Triton backend.

Written out, the states of all tokens would be n times as large as what goes in and comes out, and moving them is
what takes time. So the recurrence runs where its state is: a program owns some channels of a sequence and keeps
their state in registers from the first token to the last. Memory sees x and dt once, y once, and one state.

    grid      tiles of `i_block` channels, sequences; channels do not know of each other (definition in `ref.py`)
    state     [i_block, n], in registers
    time      a loop over tokens, of which a few are read before the first of them is needed: a read takes longer
              than a step. A token that is padding is not read and takes a step of 0, which changes nothing
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from ..pallas_gpu import chosen_sides, read, read_rows, run, side, write, write_rows
from ..shapes import shaped
from .selective_scan import SHAPES

READ_AHEAD = 4


class Inputs(NamedTuple):
    """What programs read: arrays outside of the kernel, references to them inside. None: not given."""

    x: Any
    dt: Any
    A: Any
    B: Any
    C: Any
    D: Any
    dt_bias: Any
    state: Any
    lengths: Any


@shaped(SHAPES)
def selective_scan_gpu(
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
    i_block: int = 64,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Arguments and result as in `selective_scan_ref`; y in x's dtype, the state in float32.

    ValueError if `i_block`, the channels of a program, is not a power of two of at least 16. `interpret` as in
    `ops/pallas_gpu.py`.
    """
    op, (b, t, i), n = "selective_scan_gpu", x.shape, A.shape[1]
    (i_block,) = chosen_sides(op, x.dtype, i_block=i_block)
    i_block = min(i_block, side(i))
    states = (b, t, i, n) if return_states else (b, i, n)
    return run(
        partial(scan_kernel, i_block=i_block, softplus=softplus, return_states=return_states),
        (pl.cdiv(i, i_block), b),
        Inputs(x, dt, A, B, C, D, dt_bias, state, lengths),
        (jax.ShapeDtypeStruct(x.shape, x.dtype), jax.ShapeDtypeStruct(states, jnp.float32)),
        name=op,
        warps=2,
        interpret=interpret,
    )


def scan_kernel(
    given: Inputs, y_ref: Any, states_ref: Any, *, i_block: int, softplus: bool, return_states: bool
) -> None:
    """Some channels of one sequence, token after token."""
    b, (_, t, channels), n = pl.program_id(1), given.x.shape, given.A.shape[1]
    i = pl.program_id(0) * i_block + jnp.arange(i_block, dtype=jnp.int32)
    real = i < channels
    length = jnp.int32(t) if given.lengths is None else given.lengths[b]
    A = read_rows(given.A, (i,), real).astype(jnp.float32)  # i_block n
    D = None if given.D is None else read(given.D, (i,), real).astype(jnp.float32)
    dt_bias = None if given.dt_bias is None else read(given.dt_bias, (i,), real).astype(jnp.float32)
    entry = jnp.arange(side(n), dtype=jnp.int32)

    def fetch(now: jax.Array) -> tuple[jax.Array, ...]:
        token = now < length
        x, dt = (read(ref, (b, now, i), real & token) for ref in (given.x, given.dt))
        return x, dt, *(read(ref, (b, now, entry), (entry < n) & token) for ref in (given.B, given.C))

    ahead = min(READ_AHEAD, t)

    def steps(first: jax.Array, state: jax.Array) -> jax.Array:
        times = [first * ahead + later for later in range(ahead)]
        tokens = [fetch(now) for now in times]
        for now, token in zip(times, tokens, strict=True):
            x, dt, B, C = (one.astype(jnp.float32) for one in token)
            dt = dt if dt_bias is None else dt + dt_bias
            dt = jnp.where(now < length, jax.nn.softplus(dt) if softplus else dt, 0)
            state = jnp.exp(dt[:, None] * A) * state + (dt * x)[:, None] * B[None]
            y = jnp.sum(state * C[None], axis=1)
            write(y_ref, (b, now, i), real & (now < t), y if D is None else y + D * x)
            if return_states:
                write_rows(states_ref, (b, now, i), real & (now < t), state)
        return state

    zero = jnp.zeros((i_block, side(n)), jnp.float32)
    start = zero if given.state is None else read_rows(given.state, (b, i), real).astype(jnp.float32)
    last = jax.lax.fori_loop(0, pl.cdiv(t, ahead), steps, start)
    if not return_states:
        write_rows(states_ref, (b, i), real, last)
