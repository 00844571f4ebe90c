"""What is particular to paged attention (its table) and to latent attention (its two algorithms)."""

from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from agreement import QUICK

from minillm.ops.attention import paged
from minillm.ops.attention.cases_mla import MLA
from minillm.ops.attention.cases_paged import PAGED_ATTENTION
from minillm.ops.attention.mla import absorbed_mla_attention, expanded_mla_attention

every_form = pytest.mark.parametrize("form", PAGED_ATTENTION.forms.values(), ids=PAGED_ATTENTION.forms)


def small(**changes) -> dict[str, Any]:
    """Two sequences of 3 and 0 tokens in pages of two rows."""
    args = {
        "q": np.ones((2, 1, 2, 4), np.float32),
        "k_pages": np.ones((3, 2, 1, 4), np.float32),
        "v_pages": np.ones((3, 2, 1, 4), np.float32),
        "pages": np.array([[2, 0], [-9, 99]], np.int32),
        "lengths": np.array([3, 0], np.int32),
    }
    return args | changes


REFUSED = [
    ({"pages": np.array([[2, 3], [0, 0]], np.int32)}, r"pages\[0, 1\] is 3 and holds tokens, expected 0 … 2"),
    ({"pages": np.array([[-1, 0], [0, 0]], np.int32)}, r"pages\[0, 0\] is -1 and holds tokens, expected 0 … 2"),
    ({"lengths": np.array([5, 0], np.int32)}, r"lengths\[0\] is 5, expected 0 … 4"),
    ({"lengths": np.array([3, -1], np.int32)}, r"lengths\[1\] is -1, expected 0 … 4"),
    ({"q": np.ones((2, 1, 3, 4), np.float32), "k_pages": np.ones((3, 2, 2, 4), np.float32),
      "v_pages": np.ones((3, 2, 2, 4), np.float32)}, "q has h = 3 heads, not a multiple of k's g = 2"),
    ({"window": 0}, "window is 0"),
    ({"softcap": -1.0}, "softcap is -1.0"),
    ({"lengths": np.array([3.0, 0.0], np.float32)}, r"lengths \[b\] has dtype float32, expected int"),
    ({"v_pages": np.ones((4, 2, 1, 4), np.float32)}, r"v_pages \[p o g j\] has p = 4, but k_pages has p = 3"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[message for _, message in REFUSED])
@every_form
def test_a_table_that_cannot_serve_is_refused_before_compilation(form, change, message):
    with pytest.raises(ValueError, match=f"^{form.__name__}: {message}"):
        form(**small(**change))


@every_form
def test_entries_that_no_token_needs_may_be_any_number(form):
    y, lse = jax.jit(partial(form, return_lse=True), compiler_options=QUICK)(**small())
    assert np.array_equal(y, np.stack([np.ones((1, 2, 4)), np.zeros((1, 2, 4))]))
    assert np.array_equal(lse[1], np.full((1, 2), -np.inf))


@every_form
def test_under_jit_a_page_that_does_not_exist_is_nan_and_never_somebody_else_s(form):
    y = jax.jit(form, compiler_options=QUICK)(**small(pages=np.array([[2, 3], [0, 0]], np.int32)))
    assert np.isnan(y[0]).all()
    assert np.array_equal(y[1], np.zeros((1, 2, 4)))


def test_pages_past_the_longest_sequence_are_not_visited(monkeypatch):
    visits, fold = [], paged.fold

    def counted(*args):
        jax.debug.callback(lambda: visits.append(1))
        return fold(*args)

    monkeypatch.setattr(paged, "fold", counted)
    jax.jit(paged.paged_attention, compiler_options=QUICK)(**small(pages=np.zeros((2, 50), np.int32)))
    jax.effects_barrier()
    assert len(visits) == 2


@pytest.mark.parametrize("form", [expanded_mla_attention, absorbed_mla_attention])
def test_latent_attention_refuses_more_queries_than_tokens_without_positions(form):
    case = MLA.cases[1]
    args = MLA.draw(case, np.random.default_rng(0))
    args = {name: x.astype(np.float32) for name, x in args.items()} | {"latent": np.zeros((2, 3, 16), np.float32)}
    with pytest.raises(ValueError, match=r"k_rope \[b s a\] has s = 9, but latent has s = 3"):
        form(**args)
    with pytest.raises(ValueError, match=rf"{form.__name__}: q has t = 9 > s = 3; say where"):
        form(**(args | {"k_rope": np.zeros((2, 3, 4), np.float32)}))


def test_absorbed_attention_builds_no_keys_of_single_heads():
    """Nothing it computes has heads and tokens and a head's channels."""
    case = MLA.cases[2]
    args = MLA.draw(case, np.random.default_rng(0))
    b, s, h, k = 3, 21, 4, 8
    for form, built in ((expanded_mla_attention, True), (absorbed_mla_attention, False)):
        program = jax.make_jaxpr(form)(**{name: x.astype(np.float32) for name, x in args.items()})
        shapes = {out.aval.shape for eqn in program.eqns for out in eqn.outvars}
        assert ((b, s, h, k) in shapes) == built
