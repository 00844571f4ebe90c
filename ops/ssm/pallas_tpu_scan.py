"""The selective scan for TPUs (Gu and Dao 2023, arXiv:2312.00752, section 3.3.2), in Pallas (see `ref.py`).

There is no product of matrices in it: every channel has decays of its own, so all is done by the vector unit, token
after token. Chunks are the last axis of the grid: the state of some channels stays in VMEM while a text goes by,
and the states between are never written to main memory, unless they are asked for.

    grid        b, tiles of i_block channels, chunks. A step sees, of c tokens,
    x, dt, y    [b t i]       block c, i            in float32: of bfloat16 two rows share a register
    A           [n i]         block n, i            channels along the lanes, the entries of a state along sublanes
    B, C        [b n t]       block n, c
    start       [b n i]       block n, i
    states      [b q n i]     block 1|c, n, i       after the last token, or after each
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..pallas_tpu import LANES, places
from ..shapes import shaped
from ..tiles import fill_up
from .selective_scan import SHAPES, add_skip, prepare


class Inputs(NamedTuple):
    """What a step reads: arrays outside of the kernel, references to blocks inside."""

    x: Any
    dt: Any
    A: Any
    B: Any
    C: Any
    start: Any


@shaped(SHAPES)
def selective_scan_tpu(
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
    i_block: int = 512,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Arguments and result as in `selective_scan_ref`; y in x's dtype, the state in float32.

    ValueError if `i_block`, the channels of a tile, is less than 1. `interpret` as in `ops/pallas_tpu.py`.
    """
    op, (b, t, i), n, dtype = "selective_scan_tpu", x.shape, A.shape[1], x.dtype
    if i_block < 1:
        raise ValueError(f"{op}: i_block is {i_block}, expected 1 or more")
    (x, dt, B, C), A, start = prepare(x, dt, A, B, C, dt_bias, softplus, state, lengths)
    c, i_block = min(LANES, t), min(i_block, i)
    given = Inputs(
        x=fill_up(x, 1, c),
        dt=fill_up(dt, 1, c),
        A=A.T,
        B=fill_up(B, 1, c).swapaxes(1, 2),
        C=fill_up(C, 1, c).swapaxes(1, 2),
        start=start.swapaxes(1, 2),
    )
    tokens = pl.BlockSpec((None, c, i_block), lambda b, i, q: (b, q, i))
    entries = pl.BlockSpec((None, n, c), lambda b, i, q: (b, 0, q))
    whole = pl.BlockSpec((None, n, i_block), lambda b, i, q: (b, 0, i))
    kept, times = (c, given.x.shape[1]) if return_states else (1, 1)
    y, states = pl.pallas_call(
        partial(scan_kernel, return_states=return_states),
        grid=(b, pl.cdiv(i, i_block), given.x.shape[1] // c),
        in_specs=[
            Inputs(tokens, tokens, pl.BlockSpec((n, i_block), lambda b, i, q: (0, i)), entries, entries, whole)
        ],
        out_specs=(
            tokens,
            pl.BlockSpec((None, kept, n, i_block), lambda b, i, q: (b, q if return_states else 0, 0, i)),
        ),
        out_shape=(
            jax.ShapeDtypeStruct(given.x.shape, jnp.float32),
            jax.ShapeDtypeStruct((b, times, n, i), jnp.float32),
        ),
        scratch_shapes=[pltpu.VMEM((n, i_block), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=7 * b * t * i * n,
            transcendentals=b * t * i * n,
            bytes_accessed=4 * b * (3 * t * i + 2 * pl.cdiv(i, i_block) * t * n + (1 + times) * n * i),
        ),
        name=op,
        interpret=interpret,
    )(given)
    states = states.swapaxes(2, 3)
    return add_skip(y[:, :t], x, D).astype(dtype), states[:, :t] if return_states else states[:, 0]


def scan_kernel(given: Inputs, y: Any, states: Any, state: Any, *, return_states: bool) -> None:
    """One step: some channels of a chunk, token after token."""

    @pl.when(pl.program_id(2) == 0)
    def _():
        state[...] = given.start[...]

    A, B, C = given.A[...], given.B[...], given.C[...]
    place = places(B.shape, 1)

    def step(t: jax.Array, h: jax.Array) -> jax.Array:
        x, dt = (ref[pl.ds(t, 1)] for ref in (given.x, given.dt))  # 1 i
        B_t, C_t = (jnp.sum(jnp.where(place == t, one, 0), axis=1, keepdims=True) for one in (B, C))  # n 1
        h = jnp.exp(dt * A) * h + B_t * (dt * x)
        y[pl.ds(t, 1)] = jnp.sum(C_t * h, axis=0, keepdims=True)
        if return_states:
            states[pl.ds(t, 1)] = h[None]
        return h

    state[...] = jax.lax.fori_loop(0, given.x.shape[0], step, state[...])
    if not return_states:
        states[0] = state[...]
