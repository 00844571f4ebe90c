"""Scales by importance: errors are less where inputs are large."""

from functools import partial

import jax
import numpy as np
import pytest

from minillm.compress import importance
from minillm.compress.importance import searched, weighed, weighs
from minillm.quant.recipes import STORAGES, recipe_named
from minillm.quant.storage import GGUF, Ints

WEIGH = ["int4", "int4-g32-affine", "ternary-g64", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs"]


def drawn() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(16, 256)).astype(np.float32), np.exp(2 * rng.normal(size=256)).astype(np.float32)


@partial(jax.jit, static_argnums=0)
def decoded(storage, parts):
    return storage.decode(parts)


@pytest.mark.parametrize("recipe", WEIGH)
def test_weighed_errors_are_less_than_without_weighing(recipe):
    w, squares = drawn()
    storage = recipe_named(recipe).storage
    assert weighs(storage)
    with_, without = (
        np.sum(squares * (decoded(storage, parts) - w) ** 2)
        for parts in (weighed(w, squares, storage), storage.encode(w))
    )
    assert with_ < without


def test_no_other_storage_has_a_choice():
    assert not any(weighs(storage) for name, storage in STORAGES.items() if name not in WEIGH)


@pytest.mark.parametrize("storage", [Ints("int4", 32), Ints("int4", 64, affine=True)], ids=str)
def test_rows_are_searched_a_few_at_a_time_with_the_same_result(storage, monkeypatch):
    w, squares = drawn()
    whole = searched(w, squares, storage)
    monkeypatch.setattr(importance, "PIECE", 3 * 256)
    for one, other in zip(searched(w, squares, storage), whole, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_column_that_the_text_never_used_keeps_some_importance():
    w, squares = drawn()
    squares[:32] = 0
    storage = GGUF("IQ4_NL")
    error = decoded(storage, weighed(w, squares, storage)) - w
    assert np.mean(error[:, :32] ** 2) < 0.02 * np.mean(w**2)
