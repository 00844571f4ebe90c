"""State-space duality for TPUs (Mamba-2: Dao and Gu 2024, arXiv:2405.21060, section 6), in Pallas (see `ssd.py`).

The chunked form: matrix products within a chunk of tokens, the recurrence from chunk to chunk. Chunks are the last
axis of the grid, so a head's state [k n] stays in VMEM while its text goes by.

    grid        b, h, chunks. A step sees, of q chunks of c tokens,
    x, y        [b h q k c]   block k, c
    dt          [b h q 1 c]   block 1, c            so is log_decay = dt A, what a token leaves of the state
    B, C        [b g q n c]   block n, c            those of the head's group, read again for each of its heads
    D           [h 1 1]       block 1, 1
    start       [b h k n]     block k, n
    states      [b h q k n]   block k, n            q = 1: the last one, written once

Tokens lie along the lanes. So whatever is one number a token is a row, and multiplies columns of any matrix.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..pallas_tpu import places, product
from ..shapes import shaped
from ..tiles import fill_up
from .ssd import SHAPES, check_groups
from .steps import step_sizes, zero_padding


class Inputs(NamedTuple):
    """What a step reads: arrays outside of the kernel, references to blocks inside. None: not given."""

    x: Any
    dt: Any
    log_decay: Any
    B: Any
    C: Any
    D: Any
    start: Any


@shaped(SHAPES)
def ssd_tpu(
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
    chunk: int = 128,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Arguments and result as in `ssd_ref`; y in x's dtype, the state in float32.

    With `return_states` a chunk is one token. ValueError if h is not a multiple of g, or if `chunk`, the tokens of
    a chunk, is less than 1. `interpret` as in `ops/pallas_tpu.py`.
    """
    op, (b, t, h, k), (g, n) = "ssd_tpu", x.shape, B.shape[2:]
    check_groups(op, x, B)
    if chunk < 1:
        raise ValueError(f"{op}: chunk is {chunk}, expected 1 or more")
    c, r = 1 if return_states else min(chunk, t), h // g
    x, dt, B, C = zero_padding(lengths, x, dt.astype(jnp.float32), B, C)
    dt = step_sizes(dt, dt_bias, softplus, lengths)
    given = Inputs(
        x=in_chunks(x, c),
        dt=in_chunks(dt[..., None], c),
        log_decay=in_chunks((dt * A.astype(jnp.float32))[..., None], c),
        B=in_chunks(B, c),
        C=in_chunks(C, c),
        D=None if D is None else D.astype(jnp.float32)[:, None, None],
        start=jnp.zeros((b, h, k, n), jnp.float32) if state is None else state.astype(jnp.float32),
    )

    def chunk_of_head(rows: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, None, rows, c), lambda b, h, q: (b, h, q, 0, 0))

    def chunk_of_group(rows: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, None, rows, c), lambda b, h, q: (b, jax.lax.div(h, r), q, 0, 0))

    specs = Inputs(
        x=chunk_of_head(k),
        dt=chunk_of_head(1),
        log_decay=chunk_of_head(1),
        B=chunk_of_group(n),
        C=chunk_of_group(n),
        D=None if D is None else pl.BlockSpec((None, 1, 1), lambda b, h, q: (h, 0, 0)),
        start=pl.BlockSpec((None, None, k, n), lambda b, h, q: (b, h, 0, 0)),
    )
    q = given.x.shape[2]
    kept = q if return_states else 1
    y, states = pl.pallas_call(
        ssd_kernel,
        grid=(b, h, q),
        in_specs=[specs],
        out_specs=(
            chunk_of_head(k),
            pl.BlockSpec((None, None, None, k, n), lambda b, h, q: (b, h, q if return_states else 0, 0, 0)),
        ),
        out_shape=(
            jax.ShapeDtypeStruct(given.x.shape, x.dtype),
            jax.ShapeDtypeStruct((b, h, kept, k, n), jnp.float32),
        ),
        scratch_shapes=[pltpu.VMEM((k, n), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=2 * b * h * q * c * (c * (c + n + k) + 2 * k * n),
            transcendentals=b * h * q * c * c,
            bytes_accessed=2 * x.nbytes + r * (B.nbytes + C.nbytes) + 4 * b * h * (2 * t + (1 + kept) * k * n),
        ),
        name=op,
        interpret=interpret,
    )(given)
    y = y.transpose(0, 2, 4, 1, 3).reshape(b, q * c, h, k)[:, :t]
    return y, states.swapaxes(1, 2) if return_states else states[:, :, 0]


def ssd_kernel(given: Inputs, y: Any, states: Any, state: Any) -> None:
    """One step: a chunk of a head's tokens. All in float32; times are s for what comes in, t for what goes out."""

    @pl.when(pl.program_id(2) == 0)
    def _():
        state[...] = given.start[...]

    x, B, C = (one[...].astype(jnp.float32) for one in (given.x, given.B, given.C))
    log_decay, added = given.log_decay[...], given.dt[...] * x  # 1 s, k s
    between, from_start, to_end = sums_of(log_decay)
    s, t = (places((x.shape[1], x.shape[1]), axis) for axis in (0, 1))
    weights = jnp.where(s <= t, jnp.exp(between), 0) * product("ns,nt->st", B, C)
    out = product("ks,st->kt", added, weights) + jnp.exp(from_start) * product("kn,nt->kt", state[...], C)
    if given.D is not None:
        out += given.D[...] * x
    y[...] = out.astype(y.dtype)
    decay = jnp.exp(jnp.sum(log_decay, axis=1, keepdims=True))
    state[...] = decay * state[...] + product("ks,ns->kn", jnp.exp(to_end) * added, B)
    states[...] = state[...]


def sums_of(log_decay: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums of log_decay [1 c] over a < u <= z: [c c] from any token a to any z, from the start [1 c], to the end.

    Each sum is taken over its own terms, by a product with zeros and ones: a difference of two sums would cancel
    (see `decay_between` in `steps.py`).
    """
    c = log_decay.shape[1]
    row, column = (places((c, c), axis) for axis in (0, 1))
    until, after = (row <= column).astype(jnp.float32), (row > column).astype(jnp.float32)
    terms = jnp.where(row < column, log_decay, 0)  # a u: what comes after a
    return (
        product("au,uz->az", terms, until),
        product("xu,uz->xz", log_decay, until),
        product("xu,ua->xa", log_decay, after),
    )


def in_chunks(x: jax.Array, c: int) -> jax.Array:
    """x [b t h k] -> [b h q k c]: q chunks of c tokens, the last one filled up with zeros, which are no steps."""
    x = fill_up(x, 1, c)
    b, _, h, k = x.shape
    return x.reshape(b, -1, c, h, k).transpose(0, 3, 1, 4, 2)
