"""What each drafter guesses."""

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

import minillm
from minillm.generate import Plan, generate_tokens
from minillm.sampling import new_sampler
from minillm.speculative import Tree
from minillm.speculative.draft_model import DraftModel
from minillm.speculative.ngram import NGram
from minillm.speculative.prompt_lookup import PromptLookup
from minillm.speculative.trie import trie

pytestmark = pytest.mark.usefixtures("quick_programs")

TEXTS = st.lists(st.integers(0, 3), min_size=1, max_size=40)


def paths(tree: Tree) -> list[list[int]]:
    """The tokens on the way to each token of a tree, itself last."""
    found: list[list[int]] = []
    for token, parent in zip(tree.tokens, tree.parent, strict=True):
        found.append([*(found[parent] if parent >= 0 else []), token])
    return found


@given(guesses=st.lists(TEXTS, max_size=4), most=st.integers(0, 20))
def test_a_trie_holds_what_all_guesses_begin_with(guesses, most):
    tree = trie(guesses, most)
    assert len(tree.tokens) <= most
    assert all(parent < index for index, parent in enumerate(tree.parent))
    beginnings = {tuple(guess[:n]) for guess in guesses for n in range(1, len(guess) + 1)}
    assert {tuple(path) for path in paths(tree)} <= beginnings
    assert len({tuple(path) for path in paths(tree)}) == len(tree.tokens)
    if sum(map(len, guesses)) <= most:
        assert {tuple(path) for path in paths(tree)} == beginnings
    assert tree.depth == max(map(len, paths(tree)), default=0)


@given(text=TEXTS, most=st.integers(1, 12), branches=st.integers(1, 3))
def test_prompt_lookup_drafts_what_followed_the_same_words_before(text, most, branches):
    tree = PromptLookup(branches=branches).draft(text, most)
    assert len(tree.tokens) <= most
    ends = [place for place in range(1, len(text) - 1) if text[place - 1 : place + 1] == text[-2:]]
    assert bool(tree.tokens) == bool(ends)
    if ends:
        assert {path[0] for path in paths(tree)} <= {text[end + 1] for end in ends}


def test_prompt_lookup_prefers_the_longest_and_then_the_latest_match():
    assert PromptLookup().draft([1, 2, 3, 7, 9, 2, 3, 8, 1, 2, 3], 2).tokens == [7, 9]
    assert PromptLookup().draft([2, 3, 7, 9, 2, 3, 8, 4, 2, 3], 2).tokens == [8, 4]
    assert paths(PromptLookup(branches=2).draft([2, 3, 7, 9, 2, 3, 8, 4, 2, 3], 4)) == [[8], [8, 4], [7], [7, 9]]


def test_what_repeats_is_drafted_on_and_on():
    assert PromptLookup().draft([4, 5, 6, 4, 5, 6, 4, 5], 7).tokens == [6, 4, 5, 6, 4, 5, 6]


@given(text=TEXTS, cut=st.integers(0, 40), most=st.integers(1, 8))
def test_n_grams_counted_on_the_way_are_those_counted_at_once(text, cut, most):
    on_the_way = NGram(order=3)
    on_the_way.draft(text[: min(cut, len(text) - 1) + 1], most)
    assert on_the_way.draft(text, most) == NGram(order=3).draft(text, most)


def test_n_grams_follow_the_most_frequent_continuation_of_the_longest_known_run():
    text = [1, 2, 5, 1, 2, 6, 1, 2, 6, 9, 2, 7, 2, 7, 2, 7, 1, 2]
    assert NGram(order=2).draft(text, 1).tokens == [6]
    assert NGram(order=1).draft(text, 1).tokens == [7]
    assert paths(NGram(order=2, branches=2).draft(text, 2)) == [[6], [5]]
    assert NGram().draft([1, 2, 3], 4) == Tree()


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    tiny.unpacked("llama_0", folder)
    return minillm.load(folder)


def test_a_model_drafts_what_it_would_say_itself_also_after_a_rejection(lm):
    def said(text, n):
        plan = Plan.of(text, n, lm.config.context)
        return list(generate_tokens(lm.model, plan, new_sampler(temperature=0.0, seed=0)))

    drafter, text = DraftModel(lm.model, lm.config.context), [5, 9, 2]
    for kept in (0, 1, 4, 5):
        assert drafter.draft(text, 5).tokens == said(text, 5)
        text = [*text, *said(text, 5)[:kept], 17]
    assert drafter.draft([5, 9], 5).tokens == said([5, 9], 5)


def test_a_model_that_the_text_has_outgrown_drafts_nothing(lm):
    drafter = DraftModel(lm.model, context=12)
    assert drafter.draft([1] * 8, 4).tokens
    assert drafter.draft([1] * 9, 4) == Tree()


def test_branches_are_the_next_likeliest_tokens(lm):
    tree = DraftModel(lm.model, lm.config.context, branches=3).draft([5, 9, 2], 6)
    logits = lm.logits([[5, 9, 2]])[0, -1]
    assert [path[0] for path in paths(tree) if len(path) == 1] == list(logits.argsort()[::-1][:3])
    assert tree.depth == 2
