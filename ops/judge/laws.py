"""Laws that every kernel of every op obeys; an op adds its own in its `cases.py`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..cases import Arrays, Call, Law, Op


def laws_of(op: Op) -> tuple[Law, ...]:
    """The general laws, then the op's own."""

    def rows_apart(call: Call, arrays: Arrays, options: Mapping[str, Any], rng: np.random.Generator):
        """The batch in another order gives the same rows in that order: no row uses what belongs to another."""
        b = arrays[op.batched[0]].shape[0] if op.batched else 1
        if b < 2:
            return None
        order = np.roll(np.arange(b), 1)
        moved = {name: x[order] if name in op.batched else x for name, x in arrays.items()}
        return tuple(y[order] for y in call(**arrays, **options)), call(**moved, **options)

    return (
        Law("same call, same bits", same_bits, exact=True),
        Law("rows of a batch are apart", rows_apart),
        *op.laws,
    )


def same_bits(call: Call, arrays: Arrays, options: Mapping[str, Any], rng: np.random.Generator):
    """A kernel that races or reads memory it never wrote gives itself away."""
    return call(**arrays, **options), call(**arrays, **options)
