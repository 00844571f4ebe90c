"""Batches hold every document whole, as often as the recipe says, in an order that only the seed decides."""

from collections import Counter
from typing import Any, cast

import numpy as np
import pytest

from weights import train
from weights.data import Document


class Letters:
    """A tokenizer: one id a character."""

    def encode(self, text: str) -> list[int]:
        return [ord(c) for c in text]


DOCUMENTS = [Document("recipes", str(i), chr(65 + i) * (3 + i)) for i in range(12)]
DOCUMENTS += [Document("scripture", str(i), chr(97 + i) * (2 + 2 * i)) for i in range(12)]


def batches(seed: int = 0):
    return train.Batches(DOCUMENTS, cast(Any, Letters()), seed, widths=(8, 16, 32), tokens=64)


def rows_of(epoch: int, found) -> Counter:
    seen = Counter()
    for step in range(epoch * found.each, (epoch + 1) * found.each):
        tokens, n = found(step)
        assert tokens.shape in {(8, 8), (4, 16), (2, 32)}
        seen.update(tuple(row[:end].tolist()) for row, end in zip(tokens, n, strict=True) if end)
        assert not tokens[np.arange(tokens.shape[1]) >= n[:, None]].any()
    return seen


@pytest.mark.parametrize("epoch", [0, 1])
def test_an_epoch_has_every_document_whole_and_as_often_as_it_should(epoch):
    expected = Counter({(1, *map(ord, d.text), 2): train.COPIES[d.source] for d in DOCUMENTS})
    assert rows_of(epoch, batches()) == expected


def test_a_step_has_the_same_batch_whichever_came_before_and_another_seed_another():
    one, other, steps = batches(), batches(), [5, 0, 40, 5, 17]
    found = {step: one(step) for step in reversed(steps)}
    assert all(np.array_equal(found[step].tokens, other(step).tokens) for step in steps)
    assert any(not np.array_equal(found[step].tokens, batches(1)(step).tokens) for step in found)
