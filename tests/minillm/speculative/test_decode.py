"""Whatever drafts, the text is the one that plain generation gives."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tiny

import minillm
from bench.lattice import Doubting, Foreseeing
from minillm import generate
from minillm.errors import UserError
from minillm.generate import Plan, generate_tokens
from minillm.sampling import new_sampler
from minillm.speculative import Tree, decode
from minillm.speculative.decode import generate_exactly, speculate
from minillm.speculative.draft_model import DraftModel, without_layers
from minillm.speculative.ngram import NGram
from minillm.speculative.pace import Pace
from minillm.speculative.prompt_lookup import PromptLookup
from minillm.speculative.record import Record

pytestmark = pytest.mark.usefixtures("quick_programs")

PROMPT, NEW = [5, 9, 2, 5, 9, 7, 1, 5, 9], 24
GREEDY = new_sampler(temperature=0.0, seed=0)
DRAWN = new_sampler(temperature=1.0, top_k=20, seed=5)
PENALISED = new_sampler(
    temperature=0.8, repeat_penalty=1.3, presence_penalty=0.2, frequency_penalty=0.1, min_p=0.01, seed=7
)


class Wrong:
    """Drafts the same token over and over."""

    def draft(self, text: Sequence[int], most: int) -> Tree:
        return Tree([3] * most, list(range(-1, most - 1)))


def load(family, tmp_path, case=0):
    tiny.unpacked(f"{family}_{case}", tmp_path)
    return minillm.load(tmp_path)


def plain(lm, sampler, new=NEW):
    prompt = [token % lm.config.v for token in PROMPT]
    plan = Plan.of(prompt, new, lm.config.context)
    return plan, list(generate_tokens(lm.model, plan, sampler))


def speculated(lm, plan, sampler, drafter, most=7):
    record = Record()
    tokens = list(speculate(lm.model, plan, sampler, drafter, Pace(most=most, fixed=True), record))
    assert sum(one.new for one in record.rounds) == len(tokens) - 1
    return tokens, record.summary()


DIFFERENT = tiny.quick("jamba")  # the others: bench.lattice


@pytest.mark.parametrize("family", DIFFERENT)
def test_every_family_says_what_it_says_without_drafts(family, tmp_path):
    lm = load(family, tmp_path)
    plan, expected = plain(lm, DRAWN)
    text = [*plan.prompt, *expected]
    for drafter in (Foreseeing(text, 4), Wrong(), Doubting(text, 3), PromptLookup()):
        assert speculated(lm, plan, DRAWN, drafter)[0] == expected, drafter


@pytest.mark.parametrize("family", ["llama"])  # the others: bench.lattice
def test_exact_tokens_are_the_same_with_every_drafter_and_none(family, tmp_path):
    lm = load(family, tmp_path)
    plan, fast = plain(lm, GREEDY)
    text = [*plan.prompt, *fast]
    drafters = (None, Foreseeing(text, 4), Wrong(), Doubting(text, 3), PromptLookup(branches=2))
    tokens = [list(generate_exactly(lm.model, plan, GREEDY, drafter, Record())) for drafter in drafters]
    assert all(one == tokens[0] for one in tokens)
    assert len(tokens[0]) == NEW


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return load("llama", tmp_path_factory.mktemp("llama"))


def test_every_drafter_leaves_the_text_as_it_is(lm):
    plan, expected = plain(lm, PENALISED)
    for drafter in (PromptLookup(least=1, branches=2), NGram(order=2, branches=2), model_of(lm, 2)):
        assert speculated(lm, plan, PENALISED, drafter)[0] == expected, drafter


def model_of(lm, branches=1):
    return DraftModel(lm.model, lm.config.context, branches)


def test_the_model_drafting_for_itself_is_always_right(lm):
    plan, expected = plain(lm, GREEDY)
    tokens, summary = speculated(lm, plan, GREEDY, model_of(lm))
    assert tokens == expected
    assert summary["kept_by_place"] == [1.0] * 7
    assert summary["tokens_per_pass"] > 7


def test_kept_and_tried_are_counted_by_place(lm):
    plan, expected = plain(lm, GREEDY)
    _, summary = speculated(lm, plan, GREEDY, Wrong(), most=3)
    right = expected.count(3)
    assert summary["draft_passes"] == NEW - 1 - summary["plain_steps"] - right
    if not right:
        assert summary["kept_by_place"] == [0.0]
        assert summary["tokens_per_pass"] == 1


def test_memory_that_grows_under_a_draft_forgets_nothing(lm, monkeypatch):
    plan, expected = plain(lm, GREEDY, 60)
    monkeypatch.setattr(generate, "LEAST_MEMORY", 8)
    monkeypatch.setattr(generate, "AHEAD", 1)
    small = Plan.of(plan.prompt, 60, lm.config.context)
    assert small.capacity < 32
    text = [*plan.prompt, *expected]
    assert speculated(lm, small, GREEDY, Foreseeing(text, 5))[0] == expected


@pytest.mark.parametrize("new", [1, 2, 9])
def test_no_token_too_many_comes_out(lm, new):
    plan, expected = plain(lm, GREEDY, new)
    assert len(expected) == new
    longer = [*plan.prompt, *plain(lm, GREEDY)[1]]
    assert speculated(lm, plan, GREEDY, Foreseeing(longer, 99))[0] == expected
    assert list(generate_exactly(lm.model, plan, GREEDY, Foreseeing(longer, 99), Record())) == expected


def test_a_text_may_fill_the_context_to_its_end(lm):
    context = len(PROMPT) + 20
    plan = Plan.of(PROMPT, 1000, context)
    expected = list(generate_tokens(lm.model, plan, GREEDY))
    assert len(expected) == 20
    text = [*PROMPT, *expected]
    assert speculated(lm, plan, GREEDY, Foreseeing(text, 6))[0] == expected


def test_the_same_seed_draws_the_same_text_with_and_without_drafts(lm):
    for seed in range(8):
        options = {"temperature": 1.3, "top_k": 20, "seed": seed, "max_tokens": 12}
        expected = lm.generate(PROMPT, **options)
        assert expected.speculation == {}
        for draft in (Wrong(), "prompt-lookup", "ngram"):
            found = lm.generate(PROMPT, draft=draft, **options)
            assert found.tokens == expected.tokens
            assert found.speculation["draft_passes"] + found.speculation["plain_steps"] > 0


def test_a_model_without_some_of_its_layers_drafts_for_itself(tmp_path):
    lm = load("llama", tmp_path, case=3)
    options = {"temperature": 0.0, "max_tokens": 12}
    assert lm.generate(PROMPT, draft="skip:1", **options).tokens == lm.generate(PROMPT, **options).tokens


@pytest.mark.parametrize(
    ("draft", "message"),
    [
        ("skip:x", "draft is 'skip:x', expected skip:K"),
        ("skip:0", "of which 0 cannot be skipped"),
        ("skip:99", "of which 99 cannot be skipped"),
        ("prompt", "draft is 'prompt', expected prompt-lookup, ngram, skip:K or a model"),
        ("tiny-transformer", "draft is 'tiny-transformer', expected a model with the tokens of the one it drafts"),
    ],
)
def test_what_cannot_draft_is_refused_by_name(lm, draft, message):
    with pytest.raises(UserError, match=message):
        lm.stream(PROMPT, draft=draft)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (Tree([1], []), "1 tokens with 0 parents"),
        (Tree([1] * 8, list(range(-1, 7))), "8 tokens with 8 parents, expected 7 at most"),
        (Tree([10**6], [-1]), "token 0 is 1000000 and follows token -1, expected an id below"),
        (Tree([-1], [-1]), "token 0 is -1"),
        (Tree([1, 1], [-1, 1]), "token 1 is 1 and follows token 1"),
        (Tree([1], [-2]), "follows token -2"),
    ],
)
def test_a_drafter_that_gives_no_tree_is_told_so(lm, tree, message):
    class Broken:
        def draft(self, text, most):
            return tree

    with pytest.raises(ValueError, match=f"Broken.draft.*{message}"):
        speculated(lm, plain(lm, GREEDY)[0], GREEDY, Broken())


def test_layers_are_left_out_evenly_and_never_the_outermost():
    config = minillm.load("tiny-transformer").config
    model = minillm.load("tiny-transformer").shapes
    layers = [model.blocks[i : i + 2] for i in range(0, 12, 2)]
    for n in range(1, 5):
        kept = without_layers(model, config, n).blocks
        assert len(kept) == 12 - 2 * n
        assert kept[:2] == layers[0]
        assert kept[-2:] == layers[-1]


def test_the_drawn_distribution_is_the_models_own_even_if_a_draft_is_chosen_to_mislead(lm):
    """Chi-square of 4,096 pairs of tokens, drafted: the least likely, the likeliest or the next."""
    from minillm.cache import StateSpec
    from minillm.ops.judge.distribution import find_fault
    from minillm.speculative.verify import Guess

    b, v, top = 4096, lm.config.v, 6
    logits = lm.logits([[5, *pair] for pair in [(9, i) for i in range(v)]])[:, 1:]
    first, second = logits[0, 0], logits[:, 1]
    column = np.ones(b)
    one: Any = new_sampler(temperature=0.7, top_k=top, seed=0)
    sampler = one.replace(
        temperature=(0.7 * column).astype(np.float32),
        top_k=(top * column).astype(np.int32),
        seed=np.arange(b, dtype=np.uint32),
    )

    def probabilities(row):
        scaled = np.where(row >= np.sort(row)[-top], row / 0.7, -np.inf).astype(np.float64)
        weights = np.exp(scaled - scaled.max())
        return weights / weights.sum()

    joint = probabilities(first)[:, None] * np.array([probabilities(row) for row in second])
    for drafted in (first.argmin(), first.argmax(), np.argsort(first)[-2]):
        tokens = np.tile(np.array([5, 9, drafted, 3], np.int32), (b, 1))
        guess = Guess(tokens, np.full(b, 2, np.int32), np.full(b, 4, np.int32))
        state = lm.model.init_state(StateSpec(slots=b, max_len=4))
        *_, state, new, n = read_all(lm.model, state, sampler, guess)
        pairs = np.asarray(new)[:, :2]
        lacking = np.asarray(n) == 1  # the second token of these comes from a round of its own
        kept = pairs[~lacking]
        assert find_fault(np.bincount(pairs[:, 0], minlength=v), joint.sum(axis=1), verdicts=6) is None
        if len(kept) > 500:
            after = probabilities(second[drafted])
            assert find_fault(np.bincount(kept[:, 1], minlength=v), after, verdicts=6) is None


def read_all(model, state, sampler, guess):
    b = len(guess.tokens)
    state, history, new, n = decode.verify(model, state, None, sampler, guess, np.zeros(b, np.int32))
    return history, state, new, n
