import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import all_draws, assert_forms_agree, assert_laws_hold, assert_narrow_floats_run
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm import ops
from minillm.ops.cases import Case
from minillm.ops.judge.distribution import find_fault
from minillm.ops.sampling.cases import OPS, SAMPLERS
from minillm.ops.sampling.draw_cases import draw_accept, draw_probs
from minillm.ops.sampling.samplers import sample
from minillm.ops.sampling.speculative import accept, accept_seeded, accept_tree
from minillm.ops.sampling.speculative_ref import accept_distribution_ref, accept_ref, accept_tree_ref, sample_ref

every_op = pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
ACCEPT = next(op for op in OPS if op.name == "accept")


@every_op
def test_every_form_is_the_definition_on_ordinary_exact_and_nasty_inputs(op):
    for _, draw in all_draws(op):
        assert_forms_agree(op, draw)


@pytest.mark.parametrize("op", [op for op in OPS if op.laws], ids=lambda op: op.name)
def test_laws_hold_for_every_form(op):
    assert_laws_hold(op, op.cases[3:4])


@every_op
def test_bfloat16_goes_in_and_comes_out(op):
    assert_narrow_floats_run(op, op.cases[3])


@pytest.mark.parametrize("form", [sample, sample_ref])
def test_each_token_gets_its_share_of_the_uniforms(form):
    """All 256 uniforms in steps of 1/256: a token of probability n / 256 comes n times."""
    counts = np.array([0, 100, 1, 0, 155, 0])
    uniforms = (np.arange(256) / 256).astype(np.float32)
    tokens = form(np.tile(counts / 256, (256, 1)).astype(np.float32), uniforms)
    assert np.array_equal(np.bincount(tokens, minlength=6), counts)
    assert np.all(np.diff(tokens) >= 0)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_an_impossible_token_is_not_drawn_however_the_sum_was_rounded(seed):
    rng = np.random.default_rng(seed)
    probs = rng.random((64, 515), np.float32) * (rng.random((64, 515)) < 0.1)
    probs[:, rng.integers(515)] += 1e-3
    uniforms = rng.choice(np.array([0, 0.5, 1 - 2**-24], np.float32), 64)
    tokens = np.asarray(jax.jit(sample)(probs, uniforms))
    assert np.all(probs[np.arange(64), tokens] > 0)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_accepted_tokens_are_distributed_as_the_target_says(seed):
    """First token: p_0, whatever q is. Second, if there is one: p_1. How many: products of sum(min(p, q))."""
    rng = np.random.default_rng(seed)
    q, p = draw_probs((2, 4), rng), draw_probs((3, 4), rng)
    joint = accept_distribution_ref(q, p)
    assert np.allclose(joint.sum(axis=(1, 2)), [0, *p[0]], atol=1e-15)
    second = joint.sum(axis=(0, 2))[1:]
    assert np.allclose(second, second.sum() * p[1], atol=1e-15)
    kept = np.minimum(p[:2], q).sum(axis=1)
    at_least = [joint.sum(), joint[:, 1:].sum(), joint[:, :, 1:].sum()]
    assert np.allclose(at_least, [1, kept[0], kept[0] * kept[1]], atol=1e-15)


def test_the_distribution_is_that_of_the_definition():
    """Every draft and every uniform on a grid fine enough for all borders, weighted by how likely the draft is."""
    q, p, steps = np.array([[0.5, 0.5, 0.0]]), np.array([[0.25, 0.25, 0.5], [0.5, 0.25, 0.25]]), 8
    found, grid = np.zeros((4, 4)), np.arange(steps) / steps
    for x, u, last in itertools.product(range(3), grid, grid):
        (tokens,), _ = accept_ref(np.array([[x]]), q[None], p[None], np.array([[u, last]]))
        found[tuple(tokens + 1)] += q[0, x] / steps**2
    assert np.allclose(found, accept_distribution_ref(q, p), atol=1e-15)


def test_greedy_decoding_is_the_one_hot_case():
    """Kept is what the target's argmax agrees with, and the next token is its argmax: no uniform has a say."""
    case = ACCEPT.cases[4]
    arrays = ACCEPT.styles["greedy"](draw_accept(case, np.random.default_rng(0)), case, np.random.default_rng(1))
    best = np.argmax(arrays["target_probs"], axis=2)
    tokens, n_accepted = jax.jit(accept)(**arrays)
    for row, draft in enumerate(arrays["draft"]):
        agreed = [*(draft == best[row, :-1]), False].index(False)
        assert n_accepted[row] == agreed
        assert np.array_equal(tokens[row, : agreed + 1], best[row, : agreed + 1])
        assert np.all(tokens[row, agreed + 1 :] == -1)


@pytest.mark.parametrize("form", [accept, accept_ref])
def test_where_rounding_leaves_no_residual_the_target_is_drawn_from(form):
    """p sums to less than 1 and nowhere exceeds q, so that a rejection has nothing to draw from."""
    q, p, uniforms = np.array([[[0.25, 0.75]]]), np.array([[[0.0, 0.75], [1.0, 0.0]]]), np.array([[0.5, 0.0]])
    tokens, n_accepted = form(np.array([[0]], np.int32), *(x.astype(np.float32) for x in (q, p, uniforms)))
    assert np.array_equal(tokens, [[1, -1]])
    assert np.array_equal(n_accepted, [0])


@pytest.mark.parametrize(
    ("op", "form", "case"),
    [
        (SAMPLERS[0], "sample_inversion", "9 tokens; seed 2"),
        (SAMPLERS[0], "sample_gumbel", "9 tokens; seed 2"),
        (SAMPLERS[1], "accept_seeded", "2 of 4; seed 2"),
    ],
    ids=lambda one: getattr(one, "name", one),
)
def test_samplers_draw_from_the_exact_distribution(op, form, case):
    report = ops.validate(op, op.forms[form], quick=True, only=f"chi-square; {case}")
    assert report.ran
    assert not report.failures


@pytest.mark.parametrize("op", SAMPLERS, ids=lambda op: op.name)
def test_outcomes_are_numbered_and_their_probabilities_sum_to_one(op):
    for case in op.cases:
        probabilities = op.probabilities(op.draw(case, np.random.default_rng(0)))
        assert probabilities.dtype == np.float64
        assert np.isclose(probabilities.sum(), 1, rtol=1e-12)


def test_a_sampler_that_miscounts_is_told_so():
    def miscounts(*arrays, seed):
        tokens, n_accepted = accept_seeded(*arrays, seed=seed)
        return tokens, n_accepted + 1

    report = ops.validate(SAMPLERS[1], miscounts, quick=True, only="chi-square; 1 of 2; seed 0")
    assert "n_accepted is not the number of tokens" in report.failures[0].fault


def test_targets_without_a_bonus_place_are_refused():
    shapes = ((1, 2, 4), (1, 2, 4), (1, 2))
    with pytest.raises(ValueError, match=r"accept: target_probs \[b j v\] has j = 2, expected m \+ 1 = 3"):
        accept(jnp.zeros((1, 2), jnp.int32), *map(jnp.zeros, shapes))
    with pytest.raises(ValueError, match=r"accept: uniforms \[b j\] has j = 2, but target_probs has j = 3"):
        accept(jnp.zeros((1, 2), jnp.int32), jnp.zeros(shapes[0]), jnp.zeros((1, 3, 4)), jnp.zeros((1, 2)))


def drawn_tree(rng, b, m, v):
    """Random trees with gaps, their drafts drawn from q or certain, and everything else of `draw_accept`."""
    arrays = draw_accept(Case("tree", {"b": b, "m": m, "v": v}), rng)
    certain = rng.random((b, m)) < 0.5
    arrays["draft_probs"] = np.where(certain[:, :, None], np.eye(v)[arrays["draft"]], arrays["draft_probs"])
    arrays["parent"] = np.array([[rng.integers(-2, node) for node in range(m)] for _ in range(b)], np.int32)
    return arrays


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_tree_is_judged_as_its_definition_says(seed):
    arrays = drawn_tree(np.random.default_rng(seed), b=16, m=7, v=5)
    with jax.enable_x64(True):
        found = jax.jit(accept_tree)(**arrays)
    for one, expected in zip(found, accept_tree_ref(**arrays), strict=True):
        assert np.array_equal(one, expected)


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_chain_is_a_tree_without_branches(seed):
    arrays = draw_accept(Case("chain", {"b": 16, "m": 4, "v": 5}), np.random.default_rng(seed))
    chain = np.tile(np.arange(-1, 3, dtype=np.int32), (16, 1))
    tokens, path, n_accepted = accept_tree_ref(parent=chain, **arrays)
    for one, expected in zip((tokens, n_accepted), accept_ref(**arrays), strict=True):
        assert np.array_equal(one, expected)
    assert np.array_equal(path, np.where(np.arange(4) < n_accepted[:, None], np.arange(4), -1))


def test_tokens_from_a_tree_are_distributed_as_the_target_says():
    """Chi-square of 200,000 draws: an error of 1 % in a probability of 0.3 would show with certainty.

    The start has two children, one drawn from q and one certain, and the first has two, both drawn. What the target
    says after a token depends on the token, as in a language model.
    """
    rng, n, v = np.random.default_rng(0), 200_000, 4
    q_first, q_second, start, *after = rng.dirichlet(np.full(v, 3.0), 3 + v)

    def drawn(probs):
        return np.searchsorted(np.cumsum(probs), rng.random(n))

    x = drawn(q_first)
    draft = np.stack([x, (x + 1) % v, drawn(q_second), drawn(q_second)], axis=1).astype(np.int32)
    parent = np.tile(np.array([-1, -1, 0, 0], np.int32), (n, 1))
    anything = np.tile(start, (n, 1))  # after leaves nothing is drafted
    target = np.stack([anything, *(np.array(after)[token] for token in draft[:, :2].T), anything, anything], axis=1)
    certain = np.eye(v)[draft[:, 1]]
    draft_probs = np.stack([q_first + 0 * certain, certain, *[q_second + 0 * certain] * 2], axis=1)
    floats = [array.astype(np.float32) for array in (draft_probs, target, rng.random((n, 5)))]
    tokens, _, n_accepted = (np.asarray(x) for x in jax.jit(accept_tree)(draft, parent, *floats))
    assert find_fault(np.bincount(tokens[:, 0]), start, verdicts=5) is None
    for x in range(v):
        second = tokens[(n_accepted > 0) & (tokens[:, 0] == x), 1]
        assert len(second) > 1000
        assert find_fault(np.bincount(second), after[x], verdicts=5) is None
