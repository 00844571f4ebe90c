"""Auto: bits where they help most, so many on the average.

How much worse a model gets when one matrix is rounded is measured once, with a coarse recipe: the divergence of its
predictions on a text. Other recipes are taken to cost as much less as their squared error is less, and the costs of
all matrices to add up. Then every matrix begins with the fewest bits, and the next ones always go where a bit takes
most off the sum.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import UserError
from ..evaluate.measures import kl_divergence
from ..model import Model
from ..quant import Dense, by_place, is_weight
from ..quant.quantised import STAY, Progress
from ..quant.recipes import Recipe, recipe_named
from ..quant.rules import Rule
from ..quant.storage import Storage
from .calibration import read

LADDER = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0")
PROBE = "q3_k"  # whose divergence is measured
BATCHES = 2  # of `calibration.windows`, to measure it on


@dataclass(frozen=True)
class Rung:
    """A recipe for a matrix: the bits that it takes in all, and what it is expected to cost in nats a token."""

    recipe: Recipe
    bits: float
    cost: float


def auto_rules(
    model: Model, batches: Sequence[np.ndarray], bits: float, progress: Progress = lambda *_: None
) -> list[Rule]:
    """A rule for each matrix, with `bits` a weight on the average, or a little less.

    batches are tokens i32 [b, t] to measure on. UserError if that is less than the coarsest recipes take.
    """
    leaves, tree = by_place(model)
    weights = [leaf for _, leaf in leaves]
    chosen = {place: i for i, (place, leaf) in enumerate(leaves) if is_weight(leaf) and not STAY.search(place)}
    texts = [jnp.asarray(tokens) for tokens in batches[:BATCHES]]
    reference = [read(model, tokens) for tokens in texts]
    ladders = {}
    for done, (place, i) in enumerate(chosen.items(), 1):

        def cost(other_matrix: Dense, i: int = i) -> float:
            """What the model loses with another matrix in this place."""
            other = tree.unflatten([*weights[:i], other_matrix, *weights[i + 1 :]])
            return float(np.mean([divergence(p, read(other, x)) for p, x in zip(reference, texts, strict=True)]))

        ladders[place] = ladder(weights[i], place == "embed", cost)
        progress("measuring", done, len(chosen))
    ladders = {place: rungs for place, rungs in ladders.items() if rungs}
    count = sum(weights[chosen[place]].array.size for place in ladders)
    least = sum(rungs[0].bits for rungs in ladders.values()) / count
    if bits < least:
        raise UserError(f"auto:{bits:g} is less than its coarsest recipes take, {least:.2f} bits a weight")
    return [Rule(place, None, rung.recipe) for place, rung in spread(ladders, bits * count).items()]


def ladder(weight: Dense, embedding: bool, cost: Callable[[Dense], float]) -> list[Rung]:
    """The recipes for a matrix from few bits to many; none if its rows fit no block."""
    matrix = np.asarray(weight.dense() if embedding else weight.T.dense(), np.float32)
    recipes = [recipe_named(name).for_rows_of(matrix.shape[-1]) for name in LADDER]
    fitting = list(dict.fromkeys(recipe for recipe in recipes if recipe))
    if not fitting:
        return []
    stack = matrix.reshape(-1, *matrix.shape[-2:])
    parts = [np.stack([recipe.storage.encode(w)[0] for w in stack]) for recipe in fitting]
    found = [np.asarray(decoded(part, recipe.storage)) for recipe, part in zip(fitting, parts, strict=True)]
    errors = [float(np.sum(np.square(stack - one, dtype=np.float64))) for one in found]
    at = fitting.index(recipes[LADDER.index(PROBE)] or fitting[0])
    lost = cost(in_order_of(weight, Dense(jnp.asarray(found[at].reshape(matrix.shape)), not embedding)))
    each = lost / errors[at] if errors[at] else 0.0
    rungs = [Rung(r, 8 * p.nbytes, each * error) for r, p, error in zip(fitting, parts, errors, strict=True)]
    return sorted(rungs, key=lambda rung: rung.bits)


@partial(jax.jit, static_argnames="storage")
def decoded(part: jax.Array, storage: Storage) -> jax.Array:
    """Matrices [e, rows, columns] of what a storage with one array keeps of them."""
    return jax.vmap(storage.decode)((part,))


def spread(ladders: dict[str, list[Rung]], budget: float) -> dict[str, Rung]:
    """A rung for each place, with no more bits than the budget in all."""
    steps = dict.fromkeys(ladders, 0)
    left = budget - sum(rungs[0].bits for rungs in ladders.values())
    while True:
        best, where, take, to = 0.0, "", 0.0, 0
        for place, rungs in ladders.items():
            here = rungs[steps[place]]
            for n in range(steps[place] + 1, len(rungs)):
                more = rungs[n].bits - here.bits
                gain = (here.cost - rungs[n].cost) / more if more else 0.0
                if more <= left and gain > best:
                    best, where, take, to = gain, place, more, n
        if not where:
            return {place: ladders[place][n] for place, n in steps.items()}
        steps[where], left = to, left - take


@jax.jit
def divergence(p: jax.Array, q: jax.Array) -> jax.Array:
    """The mean KL divergence of logits q [b t v] from logits p."""
    return jnp.mean(kl_divergence(p, q))


def in_order_of(weight: Dense, other: Dense) -> Dense:
    """The other matrix, stored as the first one is."""
    if other.transposed == weight.transposed:
        return other
    return Dense(other.array.swapaxes(-1, -2), weight.transposed)
