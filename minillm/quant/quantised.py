"""A model with its matrices in few bits, and an account of what became of each."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ..errors import UserError
from . import by_place, is_weight
from .dense import Dense
from .recipes import Recipe
from .rules import Rule, check_used, rule_for
from .scaled import Scaled

STAYS = "stays in every recipe"
AS_TOLD = "was to be kept"
STAY = re.compile(r"router|positions")

# From place, matrices [..., rows, columns] and recipe to their parts with the same leading axes, factors for their
# columns if they need any (see `scaled`), and what could not be done as well as meant.
Find = Callable[[str, Any, Recipe], tuple[tuple[Any, ...], Any, str | None]]
Progress = Callable[[str, int, int], None]  # what is being done, how many steps of it are, of how many


class Change(NamedTuple):
    """What became of matrices: their place, size (in, out), count and bits a weight.

    recipe  what they are stored as, and whether factors stand before; None if they were kept, for the reason `kept`
    remark  what was not done as told: another recipe, for rows that do not fill its blocks; no calibration
    """

    place: str
    shape: tuple[int, int]
    count: int
    bits: float
    recipe: str | None
    scaled: bool = False
    kept: str | None = None
    remark: str | None = None


def rounded(place: str, matrix: Any, recipe: Recipe) -> tuple[tuple[np.ndarray, ...], None, None]:
    """Every number rounded by itself."""
    matrix = np.asarray(matrix, np.float32)
    stack = [recipe.storage.encode(one) for one in matrix.reshape(-1, *matrix.shape[-2:])]
    parts = [np.stack(part) if matrix.ndim > 2 else part[0] for part in zip(*stack, strict=True)]
    return tuple(parts), None, None


def quantised(
    model: Any,
    rules: Sequence[Rule],
    find: Callable[[Rule], Find] = lambda rule: rounded,
    progress: Progress = lambda *_: None,
) -> tuple[Any, list[Change]]:
    """The model with its matrices as rules say, `find` doing the rounding, and what became of each.

    UserError if a rule fits nothing, no matrix can be stored as told, or one of them is not finite.
    """
    leaves, tree = by_place(model)
    places = {i: place for i, (place, leaf) in enumerate(leaves) if is_weight(leaf)}
    check_used(rules, list(places.values()))
    weights, changes = [leaf for _, leaf in leaves], []
    for i, place in places.items():
        weights[i], change = changed(place, weights[i], rule_for(place, rules), find)
        changes.append(change)
        progress("rounding", len(changes), len(places))
    if all(change.kept for change in changes):
        raise UserError(f"no matrix can be stored as told; {changes[0].place}: {changes[0].kept}")
    return tree.unflatten(weights), changes


def changed(place: str, weight: Any, rule: Rule | None, find: Callable[[Rule], Find]) -> tuple[Any, Change]:
    """One weight as a rule says, or as it is with the reason."""
    if not isinstance(weight, Dense):
        found = type(weight).__name__
        raise UserError(f"{place} is stored as {found}, expected plain numbers: quantise a model once")
    embedding = place == "embed"
    columns = weight.shape[embedding]
    if rule is None or rule.recipe is None or STAY.search(place):
        return weight, account(place, weight, kept=STAYS if STAY.search(place) else AS_TOLD)
    recipe, wanted = rule.recipe.for_rows_of(columns), rule.recipe
    odd = f"its rows of {columns} are no multiple of {wanted.storage.multiple}"
    if recipe is None:
        return weight, account(place, weight, kept=odd)
    matrix = weight.dense() if embedding else weight.T.dense()
    try:
        parts, factors, remark = find(rule)(place, matrix, recipe)
    except ValueError as error:
        raise UserError(f"{place} cannot be stored as {recipe.name}: {error}") from None
    parts = (part if isinstance(part, jax.Array) else jax.device_put(part) for part in parts)
    new: Any = recipe.weight(tuple(parts), columns, transposed=True)
    new = new if factors is None else Scaled(new, jax.device_put(factors))
    new = new.T if embedding else new
    if recipe != wanted:
        remark = f"{recipe.name} in place of {wanted.name}, as {odd}" + (f"; {remark}" if remark else "")
    return new, account(place, new, recipe=recipe.name, scaled=factors is not None, remark=remark)


def account(place: str, weight: Any, recipe: str | None = None, **more: Any) -> Change:
    """The change of a weight, its bits counted."""
    arrays = jax.tree.leaves(weight)
    count = int(np.prod(arrays[0].shape[:-2]))
    bits = 8 * sum(array.nbytes for array in arrays) / (count * weight.shape[0] * weight.shape[1])
    return Change(place, weight.shape, count, bits, recipe, **more)


def summary(name: str, changes: Sequence[Change]) -> str:
    """A line for users: bits a weight, and what could not be done as told."""
    line = f"{name}: {bits_a_weight(changes):.2f} bits a weight"
    odd = [change for change in changes if change.remark or change.kept not in (None, STAYS, AS_TOLD)]
    if not odd:
        return line
    first = odd[0].remark or f"stays as it is, as {odd[0].kept}"
    return f"{line}; {len(odd)} of {len(changes)} matrices otherwise, {odd[0].place}: {first}"


def bits_a_weight(changes: Sequence[Change]) -> float:
    """Of all matrices together, those that stayed as they are included."""
    sizes = [change.count * change.shape[0] * change.shape[1] for change in changes]
    return sum(size * change.bits for size, change in zip(sizes, changes, strict=True)) / sum(sizes)
