"""Generation: one program, `advance`, at two shapes.

`advance` runs new tokens through the model, commits them and samples the next one. With a chunk of the prompt
it is the prefill, with one token it is a decode step. Memory is donated, so a step writes one row in place
instead of copying the cache. Prompt chunks and memory come in a few sizes only, so that lengths do not compile.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .cache import StateSpec
from .cache.spec import PLAIN
from .model import Model
from .sampling import History, Sampler
from .span import Span
from .xla import on_device

CHUNK = 512  # tokens of prompt a forward
LEAST_CHUNK, LEAST_MEMORY = 16, 256
AHEAD = 512  # generated tokens that memory is made for at first; it doubles when they are not enough


@partial(jax.jit, donate_argnames=("state", "history"))
def advance(
    model: Model,
    state: tuple,
    history: History | None,
    sampler: Sampler,
    tokens: jax.Array,
    start: jax.Array,
    n: jax.Array,
) -> tuple[tuple, History | None, jax.Array]:
    """Take in n [b] of tokens i32 [b, t] at positions start [b] …, and sample the token after them, i32 [b, 1]."""
    b, t = tokens.shape
    at = Span.chain(start, n, t)
    hidden, pending = model.hidden(tokens, state, at)
    state = model.commit(pending, at, keep=jnp.broadcast_to(jnp.arange(t, dtype=jnp.int32), (b, t)), n_keep=n)
    if history is not None:
        history = history.observe(tokens, at)
    logits = model.logits(hidden[jnp.arange(b, dtype=jnp.int32), n - 1])
    return state, history, sampler(logits, start + n, history)[:, None]


@dataclass
class Plan:
    """Sizes of one generation in tokens: its `end`, its memory's first `capacity`, and the model's `context`.

    memory says what kind that is; its length is not its own but the capacity.
    """

    prompt: Sequence[int]
    end: int
    capacity: int
    context: int
    memory: StateSpec

    @staticmethod
    def of(prompt: Sequence[int], max_tokens: int, context: int, memory: StateSpec = PLAIN) -> "Plan":
        """A plan for up to max_tokens after prompt, in a model made for `context` tokens."""
        end = min(len(prompt) + max_tokens, context)
        capacity = min(bucket(min(end, len(prompt) + AHEAD), LEAST_MEMORY), context)
        return Plan(prompt, end, capacity, context, memory)

    def begin(self, model: Model, sampler: Sampler) -> tuple[tuple, History | None]:
        """Empty memory and history."""
        state = self.room(model, self.capacity)
        if not sampler.penalises:
            return state, None
        return state, History.empty(i32(len(self.prompt)), model.embed.shape[0])

    def room(self, model: Model, length: int) -> tuple:
        """Empty memory for so many tokens."""
        return model.init_state(self.memory.with_length(length))


def compile_prefill(shapes: Model, plan: Plan, sampler: Sampler) -> None:
    """Compile what the first chunk of the prompt needs, from the shapes of a model that is still loading."""
    tokens, n = padded(plan.prompt[:CHUNK])
    advance.lower(shapes, *plan.begin(shapes, sampler), sampler, tokens, i32(0), i32(n)).compile()


def compile_step(shapes: Model, plan: Plan, sampler: Sampler) -> None:
    """Compile what each further token needs."""
    token = on_device(np.zeros((1, 1), np.int32))
    advance.lower(shapes, *plan.begin(shapes, sampler), sampler, token, i32(0), i32(1)).compile()


def generate_tokens(model: Model, plan: Plan, sampler: Sampler) -> Iterator[int]:
    """Yield the ids that continue the prompt, up to the plan's end; the caller stops at what ends a text."""
    state, history, token = read_prompt(model, plan, sampler)
    capacity = plan.capacity
    yield token.item()
    for length in range(len(plan.prompt), plan.end - 1):
        if length == capacity:
            capacity = min(2 * capacity, plan.context)
            state = enlarged(state, plan.room(model, capacity))
        state, history, token = advance(model, state, history, sampler, token, i32(length), i32(1))
        yield token.item()


def read_prompt(model: Model, plan: Plan, sampler: Sampler) -> tuple[tuple, History | None, Any]:
    """Memory and history of the prompt, and the token i32 [1, 1] drawn after it."""
    (state, history), token = plan.begin(model, sampler), None
    for start in range(0, len(plan.prompt), CHUNK):
        tokens, n = padded(plan.prompt[start : start + CHUNK])
        state, history, token = advance(model, state, history, sampler, tokens, i32(start), i32(n))
    return state, history, token


@partial(jax.jit, donate_argnums=1)
def enlarged(old: tuple, new: tuple) -> tuple:
    """The old memory in a corner of the new: every dimension that differs has grown at its end."""
    return jax.tree.map(lambda a, b: jax.lax.dynamic_update_slice(b, a, (0,) * a.ndim), old, new)


def bucket(size: int, least: int) -> int:
    """The smallest power of two that is at least size and least."""
    return max(1 << (size - 1).bit_length(), least)


def padded(tokens: Sequence[int], least: int = LEAST_CHUNK) -> tuple[jax.Array, int]:
    """Tokens as i32 [1, bucket], and how many are real."""
    array = np.zeros((1, bucket(len(tokens), least)), np.int32)
    array[0, : len(tokens)] = tokens
    return on_device(array), len(tokens)


def i32(value: int) -> jax.Array:
    """One sequence's number, i32 [1]."""
    return on_device(np.array([value], np.int32))
