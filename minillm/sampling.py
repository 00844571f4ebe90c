"""Sampler: from logits to the next token.

The order is penalties, temperature, top-k, top-p, min-p, then a draw. A stage that is None is not in the
compiled program at all, so plain greedy decoding pays for nothing but an argmax; the values of the others are
arrays, so changing them compiles nothing.
"""

import secrets
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from .errors import UserError
from .ops import (
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise_counts,
    penalise_repetition,
    scale_temperature,
)
from .span import Span
from .xla import on_device


@struct.dataclass
class History:
    """What the penalties look at: tokens seen at all, and how often each was generated.

    seen bool [b, v]; counts i32 [b, v]; prompt i32 [b], the number of tokens that were given, not generated.
    """

    seen: jax.Array
    counts: jax.Array
    prompt: jax.Array

    @staticmethod
    def empty(prompt: jax.Array, v: int) -> "History":
        """Nothing seen yet, prompts of lengths prompt i32 [b]."""
        shape = (len(prompt), v)
        return History(on_device(np.zeros(shape, bool)), on_device(np.zeros(shape, np.int32)), prompt)

    def observe(self, tokens: jax.Array, at: Span) -> "History":
        """Take in the tokens i32 [b, t] of a span."""
        row = jnp.arange(tokens.shape[0], dtype=jnp.int32)[:, None]
        generated = at.valid & (at.pos >= self.prompt[:, None])
        seen = self.seen.at[row, tokens].max(at.valid)
        counts = self.counts.at[row, tokens].add(generated.astype(jnp.int32))
        return History(seen, counts, self.prompt)

    def of(self, slot: jax.Array | None) -> "History":
        """What was seen by the sequences in slots i32 [b]; None: by all."""
        return self if slot is None else History(self.seen[slot], self.counts[slot], self.prompt[slot])

    def with_rows(self, slot: jax.Array | None, rows: "History") -> "History":
        """The history with these rows [b] in slots i32 [b]; None: in all."""
        return rows if slot is None else jax.tree.map(lambda all_, some: all_.at[slot].set(some), self, rows)


@struct.dataclass
class Sampler:
    """One value a sequence for each stage, [b]; None leaves the stage out. Temperature 0, or None, is greedy."""

    temperature: jax.Array | None
    top_k: jax.Array | None
    top_p: jax.Array | None
    min_p: jax.Array | None
    repeat_penalty: jax.Array | None
    presence_penalty: jax.Array | None
    frequency_penalty: jax.Array | None
    seed: jax.Array

    @property
    def penalises(self) -> bool:
        """Whether any stage needs a History."""
        return any(
            stage is not None for stage in (self.repeat_penalty, self.presence_penalty, self.frequency_penalty)
        )

    def __call__(self, logits: jax.Array, position: jax.Array, history: History | None) -> jax.Array:
        """Logits f32 [b, v], the positions i32 [b] to be filled -> tokens i32 [b]."""
        logits = self.filtered(logits, history)
        if self.temperature is None:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)

        def draw(seed: jax.Array, place: jax.Array, row: jax.Array) -> jax.Array:
            return jax.random.categorical(jax.random.fold_in(jax.random.key(seed), place), row)

        drawn = jax.vmap(draw)(self.seed, position, logits)
        return jnp.where(self.temperature == 0, jnp.argmax(logits, axis=-1), drawn).astype(jnp.int32)

    def filtered(self, logits: jax.Array, history: History | None) -> jax.Array:
        """Logits f32 [b, v] after every stage; softmax of these is the distribution drawn from."""
        if self.penalises:
            if history is None:
                raise ValueError("Sampler: the penalties need a history, but there is none")
            logits = self._penalised(logits, history)
        if self.temperature is not None:
            logits = scale_temperature(logits, jnp.where(self.temperature == 0, 1, self.temperature))
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = keep_top_p(logits, self.top_p)
        if self.min_p is not None:
            logits = keep_min_p(logits, self.min_p)
        return logits

    def _penalised(self, logits: jax.Array, history: History) -> jax.Array:
        if self.repeat_penalty is not None:
            logits = penalise_repetition(logits, history.seen, self.repeat_penalty)
        if self.presence_penalty is not None and self.frequency_penalty is not None:  # they come together
            logits = penalise_counts(logits, history.counts, self.presence_penalty, self.frequency_penalty)
        return logits


def new_sampler(
    *,
    temperature: float = 0.7,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repeat_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    seed: int | None = None,
) -> Sampler:
    """A Sampler for one sequence from the values users give; UserError names one out of range.

    temperature 0 is greedy; top_k 0, top_p 1, min_p 0, repeat_penalty 1 and penalties 0 leave a stage out.
    Without a seed one is drawn.
    """
    for name, value in (("top_k", top_k), ("seed", seed)):
        require(value is None or isinstance(value, Integral), name, value, "a whole number")
    for name, value in (
        ("temperature", temperature),
        ("top_p", top_p),
        ("min_p", min_p),
        ("repeat_penalty", repeat_penalty),
        ("presence_penalty", presence_penalty),
        ("frequency_penalty", frequency_penalty),
    ):
        require(isinstance(value, Real), name, value, "a number")
    require(temperature == 0 or 1e-6 <= temperature <= 1e6, "temperature", temperature, "0 (greedy) or 1e-6 to 1e6")
    require(top_k >= 0, "top_k", top_k, "0 (off) or more")
    require(1e-6 <= top_p <= 1, "top_p", top_p, "1e-6 to 1 (off)")
    require(0 <= min_p <= 1, "min_p", min_p, "0 (off) to 1")
    require(1e-6 <= repeat_penalty <= 1e6, "repeat_penalty", repeat_penalty, "1e-6 to 1e6; 1 is off")
    require(abs(presence_penalty) <= 1e6, "presence_penalty", presence_penalty, "-1e6 to 1e6; 0 is off")
    require(abs(frequency_penalty) <= 1e6, "frequency_penalty", frequency_penalty, "-1e6 to 1e6; 0 is off")
    seed = secrets.randbits(32) if seed is None else seed
    require(0 <= seed < 2**32, "seed", seed, "0 to 4294967295")
    counted = presence_penalty != 0 or frequency_penalty != 0

    def stage(value: float, active: bool, dtype: type = np.float32):
        return on_device(np.array([value], dtype)) if active else None

    return Sampler(
        temperature=stage(temperature, temperature > 0),
        top_k=stage(min(top_k, 2**31 - 1), top_k > 0, np.int32),
        top_p=stage(top_p, top_p < 1),
        min_p=stage(min_p, min_p > 0),
        repeat_penalty=stage(repeat_penalty, repeat_penalty != 1),
        presence_penalty=stage(presence_penalty, counted),
        frequency_penalty=stage(frequency_penalty, counted),
        seed=on_device(np.array([seed], np.uint32)),
    )


CHANGES_NOTHING: dict[str, float] = {
    "temperature": 0,
    "top_k": 2**31 - 1,
    "top_p": 1,
    "min_p": 0,
    "repeat_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
}
DRAWING, PENALTIES = tuple(CHANGES_NOTHING)[:4], tuple(CHANGES_NOTHING)[4:]


def together(samplers: Sequence[Sampler | None], every: bool = False) -> Sampler:
    """One sampler for a batch of sequences with one each; None is a row that nobody uses.

    If one of them draws, or has penalties, all go through those stages, with values that change nothing: so there
    are three programs and not one for each set of options. With `every` stage there is only one.
    """

    def stage(name: str) -> np.ndarray | None:
        group = DRAWING if name in DRAWING else PENALTIES
        if not every and all(getattr(one, other) is None for one in samplers if one for other in group):
            return None
        values = [None if one is None else getattr(one, name) for one in samplers]
        dtype = np.int32 if name == "top_k" else np.float32
        return np.array([CHANGES_NOTHING[name] if value is None else value[0] for value in values], dtype)

    stages: dict[str, Any] = {name: stage(name) for name in CHANGES_NOTHING}
    seed: Any = np.array([0 if one is None else one.seed[0] for one in samplers], np.uint32)
    return Sampler(**stages, seed=seed)


def is_count(value: Any) -> bool:
    """Whether value is a whole number above 0."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def require(fits: bool, name: str, value: object, expected: str) -> None:
    """UserError unless the option fits (a NaN never does)."""
    if not fits:
        raise UserError(f"{name} is {value!r}, expected {expected}")
