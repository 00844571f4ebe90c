"""Training: the loss, the optimiser, and a loop that can be killed at any step and goes on as if it had not been.

The forward is the one that generates (`Model.hidden` with no memory), so what is trained is what runs. A batch is
whole documents of like length, one a row; the rest of a row is padding, which nothing sees and nobody is asked
about. So documents never see each other, and a recurrent state starts anew with each.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from safetensors.numpy import load_file, save_file

from .blocks.moe import MoE
from .errors import UserError
from .model import Model
from .ops import cross_entropy
from .quant import Dense
from .span import Span

BALANCE = 0.01  # weight of the load-balancing loss, as in Switch Transformers
TAUGHT = 0.8  # share of the teacher's word in the loss of a distilled model


class Batch(NamedTuple):
    """tokens i32 [b, t], of which n i32 [b] are real in each row."""

    tokens: Any
    n: Any


@struct.dataclass
class State:
    """All that the next step depends on, beside its batch."""

    model: Any
    optimizer: Any
    step: jax.Array


def schedule(steps: int, rate: float) -> optax.Schedule:
    """A warm-up of one step in fifty, then half a cosine down to a twentieth of the rate."""
    return optax.warmup_cosine_decay_schedule(0.0, rate, max(steps // 50, 1), steps, rate / 20)


def optimizer(steps: int, rate: float) -> optax.GradientTransformation:
    """Gradients clipped to norm 1; Muon for matrices (Jordan et al. 2024), AdamW for everything else.

    Muon replaces the momentum of a matrix by the nearest orthogonal one, so that rare directions are learned as
    fast as common ones; its steps are scaled to the size of Adam's (Liu et al. 2025, arXiv:2502.16982).
    """
    rates = schedule(steps, rate)
    muon = optax.contrib.muon(
        rates, weight_decay=0.1, muon_weight_dimension_numbers=matrices, consistent_rms=0.2, adam_b2=0.95
    )
    return optax.chain(optax.clip_by_global_norm(1.0), muon)


def matrices(model: Any) -> Any:
    """Which axes of which parameters are matrices that turn one vector into another; None for the others."""
    axes = optax.contrib.MuonDimensionNumbers(reduction_axis=-1, output_axis=-2)
    found: Any = jax.tree.map(
        lambda node: axes if isinstance(node, Dense) else None, model, is_leaf=lambda node: isinstance(node, Dense)
    )
    return found.replace(embed=None, head=None, positions=None)  # tables, of which a token reads one row


def loss(model: Model, batch: Batch, teacher: Model | None = None) -> tuple[jax.Array, jax.Array]:
    """What training lowers, and the mean cross-entropy of the next token in nats; both float32 [].

    With a teacher most of the loss is the cross-entropy with its distribution (Hinton et al. 2015,
    arXiv:1503.02531); with experts a part of it is their imbalance.
    """
    b, t = batch.tokens.shape
    at = Span.chain(jnp.zeros(b, jnp.int32), batch.n, t)
    hidden, pending = model.hidden(batch.tokens, None, at)
    logits = model.logits(hidden)
    asked = jnp.arange(1, t + 1, dtype=jnp.int32) < batch.n[:, None]  # whether a token follows
    targets = jnp.where(asked, jnp.roll(batch.tokens, -1, axis=1), -1)
    n = jnp.sum(asked, dtype=logits.dtype)
    nats = jnp.sum(cross_entropy(logits, targets)) / n
    total = nats
    if teacher is not None:
        taught = jax.nn.softmax(jax.lax.stop_gradient(teacher(batch.tokens, None, at)[0]))
        differs = -jnp.sum(taught * jax.nn.log_softmax(logits), axis=-1)
        total = (1 - TAUGHT) * nats + TAUGHT * jnp.sum(jnp.where(asked, differs, 0)) / n
    return total + BALANCE * imbalance(model, pending), nats


def imbalance(model: Model, pending: tuple) -> jax.Array | float:
    """e sum_i f_i P_i, averaged over layers with experts: 1 if evenly used (Fedus et al. 2021, arXiv:2101.03961).

    f_i is the share of choices that fell on expert i, P_i the mean probability that the router gave it.
    """
    routed = [one for block, one in zip(model.blocks, pending, strict=True) if isinstance(block, MoE)]
    parts = []
    for load, probability in routed:
        share = load.astype(probability.dtype) / jnp.maximum(jnp.sum(load), 1).astype(probability.dtype)
        parts.append(len(load) * jnp.sum(share * probability))
    return sum(parts) / max(len(parts), 1)


@partial(jax.jit, donate_argnames="state", static_argnames="update")
def train_step(
    state: State, batch: Batch, teacher: Model | None, update: optax.GradientTransformation
) -> tuple[State, jax.Array]:
    """One step of `update` -> the state after it, and the nats before it."""
    (_, nats), gradients = jax.value_and_grad(loss, has_aux=True)(state.model, batch, teacher)
    changes, inner = update.update(gradients, state.optimizer, state.model)
    return State(optax.apply_updates(state.model, changes), inner, state.step + 1), nats


def train(
    model: Any,
    batch_at: Callable[[int], Batch],
    steps: int,
    *,
    rate: float,
    file: Path,
    save_every: int = 200,
    teacher: Model | None = None,
) -> Iterator[tuple[int, State, float]]:
    """Train, yielding (steps done, state, nats) after each step; goes on from `file` if that is there.

    batch_at(i) is the batch of step i and must not depend on anything else. The state is saved to `file` every so
    many steps and at the end.
    """
    update, state = optimizer(steps, rate), fresh_state(model, steps, rate)
    if file.exists():
        state = restored(file, state)
    for step in range(int(state.step), steps):
        state, nats = train_step(state, batch_at(step), teacher, update)
        if (step + 1) % save_every == 0 or step + 1 == steps:
            save(file, state)
        yield step + 1, state, float(nats)


def fresh_state(model: Any, steps: int, rate: float) -> State:
    """The state before the first step."""
    return State(model, optimizer(steps, rate).init(model), jnp.zeros((), jnp.int32))


def save(file: Path, state: State) -> None:
    """Write a state, bit for bit; the file appears, or changes, in one go."""
    arrays = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    draft = file.with_suffix(".tmp")
    save_file(arrays, draft)
    os.replace(draft, file)


def restored(file: Path, like: State) -> State:
    """The state in a file, which must have the arrays of `like`; UserError if it does not."""
    arrays, (leaves, tree) = load_file(file), jax.tree.flatten(like)
    expected = {str(i): (leaf.shape, leaf.dtype) for i, leaf in enumerate(leaves)}
    found = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    if found != expected:
        raise UserError(f"{file}: holds the training of another model; train that one, or move the file away")
    return jax.tree.unflatten(tree, [jnp.asarray(arrays[str(i)]) for i in range(len(leaves))])
