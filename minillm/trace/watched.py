"""Blocks that also tell what went through them.

A block sees its surroundings through three calls only: the model calls it, it calls its memory, and the model has
it commit. So a wrapper around the block and one around its memory hear everything: the residual stream, queries,
keys, what goes into a recurrence. What they heard travels as a part of what the block proposes, and comes out
with the new state. Nothing is added to any block, and `generate.advance` runs such a model like any other.

What is large and follows from the rest (attention weights, gates, routes) is computed from what was heard, inside
the same program.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ..blocks import MLP, GatedDeltaNet, Mamba, Mamba2, MoE
from ..blocks.mlp import ACTIVATIONS
from ..cache import StateSpec
from ..cache.latent import Latent
from ..cache.recurrent import mine, new_as_zero
from ..cache.rows import Memory, Rows
from ..model import Model
from ..ops import causal_conv1d, silu, softplus
from ..ops.attention.mla import project
from ..ops.attention.scores import scores, visible
from ..span import Span


class Told(NamedTuple):
    """A block's new memory, and what was seen in the span that led to it: arrays [b, t, ...] by name.

    x, y           what went into the block and what came out, [b t d]
    q              queries as they are compared with keys, turned by RoPE if there is any, [b t h k]
    weights, pos   what each query took from each row of the memory, [b h t s], and the rows' positions [b s]
    gates          of a recurrence: see `gates_of`
    inside         of a feed-forward layer: its f channels [b t f]
    chosen, share  experts of each token, best first, and their weights, [b t m]
    """

    memory: Any
    seen: dict[str, Any]


@struct.dataclass
class Listener:
    """A memory that keeps what it was asked, in `heard`, and passes everything on."""

    memory: Any
    heard: dict[str, Any] = struct.field(default_factory=dict)

    def append(self, *arguments: Any) -> "Listener":
        """As the memory does."""
        return Listener(self.memory.append(*arguments))

    def attend(self, *arguments: Any, **options: Any) -> tuple[jax.Array, "Listener"]:
        """As the memory does; hears the queries, and what they look at."""
        y, memory = self.memory.attend(*arguments, **options)
        look = look_at_latents if isinstance(memory, Latent) else look_at
        return y, Listener(memory, look(self.memory, *arguments, **options))

    def run(self, step: Any, inputs: Any, at: Span) -> tuple[jax.Array, "Listener"]:
        """As the memory does; hears what goes into the recurrence."""
        y, memory = self.memory.run(step, inputs, at)
        return y, Listener(memory, {"inputs": inputs})


@struct.dataclass
class Watched:
    """A block that, having committed, gives out what was `Told` and not the bare memory."""

    block: Any

    def init_state(self, spec: StateSpec) -> Any:
        return self.block.init_state(spec)

    def __call__(self, x: jax.Array, state: Any, at: Span) -> tuple[jax.Array, Told]:
        remembers = state != ()
        y, pending = self.block(x, Listener(state) if remembers else state, at)
        seen: dict[str, Any] = {"x": x, "y": y}
        if isinstance(self.block, MoE):
            seen |= routes_of(self.block, x)
        if isinstance(self.block, MLP):
            seen["inside"] = inside_of(self.block, x)
        if not remembers:
            return y, Told(pending, seen)
        heard = dict(pending.heard)
        if "inputs" in heard:
            seen["gates"] = gates_of(self.block, heard.pop("inputs"), state, at)
        return y, Told(pending.memory, seen | heard)

    def commit(self, pending: Told, at: Span, keep: jax.Array, n_keep: jax.Array) -> Told:
        return Told(self.block.commit(pending.memory, at, keep, n_keep), pending.seen)


def watched(model: Model) -> Model:
    """The same model with every block watched: its `commit` gives a `Told` for each block."""
    return replace(model, blocks=tuple(Watched(block) for block in model.blocks))


def look_at(
    memory: Any, q: jax.Array, at: Span, *, window=None, softcap=None, scale=None, sinks=None
) -> dict[str, jax.Array]:
    """What queries [b t h k] take from the rows of a memory; arguments as in its `attend`."""
    rows = [every_row(part, at) for part in memory.parts()]
    rule: dict[str, Any] = {"scale": scale, "softcap": softcap}
    return {"q": q, **shares(q, rows, at, window, rule, sinks)}


def look_at_latents(
    latent: Latent,
    q_nope: jax.Array,
    q_rope: jax.Array,
    w_uk: jax.Array,
    w_uv: jax.Array,
    at: Span,
    *,
    scale: float,
) -> dict[str, jax.Array]:
    """The same for latent attention, whose queries can be compared with the latents themselves."""
    q = jnp.concatenate([project("bthk,hkl->bthl", q_nope, w_uk), q_rope], axis=-1)
    rows = [every_row(part, at) for part in latent.memory.parts()]
    rows = [one._replace(k=jnp.concatenate([one.v, one.k], axis=-1)) for one in rows]
    return {"q": q_rope, **shares(q, rows, at, None, {"scale": scale, "softcap": None}, None)}


def every_row(part: Memory, at: Span) -> Rows:
    """All rows of a part of a memory."""
    return part.rows(at, 0, part.n_rows(at))


def shares(
    q: jax.Array, rows: list[Rows], at: Span, window: int | None, rule: dict[str, Any], sinks: jax.Array | None
) -> dict[str, jax.Array]:
    """The softmax that attention takes: weights [b h t s] of all rows together, NaN for padding, and pos [b s]."""
    b, t, h, _ = q.shape
    parts = []
    for one in rows:
        seen = visible(at.query_pos, one.pos, causal=True, window=window, mask=one.mask)
        parts.append(scores(q, one.k.astype(q.dtype), at.query_pos, one.pos, seen, **rule))
    score = jnp.concatenate(parts, axis=-1).reshape(b, h, t, -1)
    if sinks is not None:  # a sink takes its share and gives nothing
        sink = jnp.broadcast_to(sinks.astype(score.dtype)[None, :, None, None], (b, h, t, 1))
        weights = jax.nn.softmax(jnp.concatenate([score, sink], axis=-1))[..., :-1]
    else:
        weights = jax.nn.softmax(score)
    return {"weights": weights, "pos": jnp.concatenate([one.pos for one in rows], axis=1)}


def gates_of(block: Any, inputs: Any, state: Any, at: Span) -> dict[str, jax.Array]:
    """What a recurrence does with each token.

    dt      Mamba [b t i], Mamba-2 [b t h]: how far time moves on, so how much the state fades
    decay   Mamba-2 and the delta rule [b t h]: what part of the state stays
    beta    the delta rule [b t h]: what part of a value is replaced
    """
    if isinstance(block, GatedDeltaNet):
        _, log_decay, beta = inputs
        return {"decay": jnp.exp(log_decay), "beta": beta}
    if isinstance(block, Mamba2):
        dt = softplus(wide(inputs[1]) + wide(block.dt_bias))
        return {"dt": dt, "decay": jnp.exp(-jnp.exp(wide(block.A_log)) * dt)}
    assert isinstance(block, Mamba), f"{type(block).__name__} has no gates that are known here"
    before = new_as_zero(mine(state.committed["conv"], at), at)
    x, _ = causal_conv1d(inputs, block.conv.T, block.conv_bias, state=before, lengths=at.n)
    s = block.spec
    low, _, _ = block.normed(jnp.split(silu(x) @ block.dt_B_C, (s.rank, s.rank + s.n), axis=-1))
    return {"dt": softplus(wide(low @ block.dt) + wide(block.dt_bias))}


def wide(x: jax.Array) -> jax.Array:
    """In float32 or wider."""
    return x.astype(np.promote_types(x.dtype, np.float32))


def inside_of(block: MLP, x: jax.Array) -> jax.Array:
    """What a feed-forward layer has between its two matrices: x [b t d] -> [b t f]."""
    act, y = ACTIVATIONS[block.spec.activation], block.norm(x) @ block.up
    gate, up = jnp.split(y, 2, axis=-1) if block.spec.gated else (y, 1)
    return act(gate) * up


def routes_of(block: MoE, x: jax.Array) -> dict[str, jax.Array]:
    """To which experts each token goes, and with which weights."""
    share, chosen = block.route(block.norm(x).reshape(-1, x.shape[-1]))
    return {"chosen": chosen.reshape(*x.shape[:2], -1), "share": share.reshape(*x.shape[:2], -1)}
