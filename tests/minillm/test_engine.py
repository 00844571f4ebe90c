"""What a request says does not depend on who else is there, and nothing is lost whatever happens."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from agreement import QUICK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import minillm
from minillm import engine as engine_module
from minillm import runner
from minillm.cache.paged import Paged
from minillm.cache.spec import PLAIN
from minillm.engine import Engine
from minillm.errors import UserError
from minillm.sampling import new_sampler, together
from minillm.speculative import Tree
from minillm.speculative.prompt_lookup import PromptLookup

RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(3, 50, n).tolist() for n in (9, 1, 16, 12, 3)]
DRAWN = {"top_k": 30, "top_p": 0.9, "min_p": 0.01}
OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0.0, "max_tokens": 14},
    {"temperature": 1.0, "seed": 1, "max_tokens": 9} | DRAWN,
    {"temperature": 0.8, "seed": 2, "max_tokens": 20} | DRAWN | {"top_p": 0.8},
    {"temperature": 1.2, "seed": 3, "max_tokens": 1} | DRAWN | {"top_k": 9},
    {"temperature": 0.9, "repeat_penalty": 1.3, "frequency_penalty": 0.2, "seed": 4, "max_tokens": 16},
]


def load(family, folder):
    tiny.unpacked(f"{family}_0", folder)
    lm = minillm.load(folder)
    lm.config = replace(lm.config, eos=())
    return lm


def served(lm, drafts: Sequence[Any] = (None,), options=OPTIONS, **how: Any) -> list[list[int]]:
    """What the requests say together."""
    how = {"max_batch": 4, "context": 64, **how}
    engine = Engine(lm, **how)
    before = jax.tree.map(lambda leaf: leaf.shape, engine.runner.state)
    requests = [
        engine.submit(prompt, draft=drafts[i % len(drafts)], **one)
        for i, (prompt, one) in enumerate(zip(PROMPTS, options, strict=True))
    ]
    engine.run()
    assert len(engine.pool.free) + len(engine.prefixes.nodes) == engine.pool.n_pages
    assert engine.rows == [None] * len(engine.rows)
    assert jax.tree.map(lambda leaf: leaf.shape, engine.runner.state) == before
    assert all(request.finish_reason == "length" for request in requests)
    return [request.tokens for request in requests]


@pytest.mark.slow  # it takes two dozen programs; bench.lattice asks the same in exact mode, test_batch of files
@pytest.mark.usefixtures("quick_programs")
@pytest.mark.parametrize("family", ["llama", "jamba"])
def test_requests_say_together_what_each_says_alone(family, tmp_path):
    lm = load(family, tmp_path)
    alone = [lm.generate(prompt, **one).tokens for prompt, one in zip(PROMPTS, OPTIONS, strict=True)]
    assert served(lm, drafts=(PromptLookup(least=1), None)) == alone


@pytest.mark.usefixtures("quick_programs")
@pytest.mark.parametrize("family", ["llama"])
def test_it_does_not_matter_whether_all_rows_go_or_half_of_them(family, tmp_path):
    lm = load(family, tmp_path)
    assert served(lm) == served(lm, steady=True)


@pytest.mark.usefixtures("quick_programs")
def test_a_request_that_loses_its_pages_goes_on_as_if_it_had_not(tmp_path):
    lm = load("llama", tmp_path)
    expected = served(lm)
    engine = Engine(lm, max_batch=4, context=64, page_size=4, n_pages=15)
    requests = [engine.submit(prompt, **one) for prompt, one in zip(PROMPTS, OPTIONS, strict=True)]
    engine.run()
    assert sum(request.preempted for request in requests) > 0
    assert [request.tokens for request in requests] == expected


# From here on a language without a model: tokens are remembered in pages as they are, and the next token follows
# from all that is found there, so that a page that two requests share, or that is given away, changes what is said.

V, O = 40, 4


def next_token(text: list[int], seed: int) -> int:
    return (sum((i + 1) * token for i, token in enumerate(text)) * 7 + seed) % V


class Memory:
    """Stands for the model."""

    embed = np.zeros((V, 1))

    def init_state(self, spec):
        memory: Any = Paged
        return memory(*(np.full((spec.n_pages, spec.page_size), -1) for _ in range(2)))

    def write(self, state, table, start, tokens):
        """Put tokens into the rows from start on; all the text up to their end."""
        for i, token in enumerate(tokens):
            state.keys[table[(start + i) // O], (start + i) % O] = token
        return [int(state.keys[table[i // O], i % O]) for i in range(start + len(tokens))]


class Language:
    """A language model's place in the engine."""

    tokenizer = None
    config: Any = SimpleNamespace(v=V, context=64)
    model: Any = Memory()

    def __init__(self, ends=()):
        self.ends = set(ends)

    def memory(self, cache, lossy):
        return PLAIN

    def longest(self, memory):
        return self.config.context

    def drafter(self, draft):
        return draft

    def prompt_ids(self, prompt, context):
        return list(prompt)


def engine_of(language: Any, **how: Any) -> Engine:
    return Engine(language, **how)


def fake_read(model, state, history, sampler, tokens, start, n, slot, pages):
    drawn = []
    for i in range(len(tokens)):
        text = model.write(state, pages[i], start[i], tokens[i, : n[i]]) if n[i] else []
        drawn.append(next_token(text, sampler.seed[i]))
    return state, history, np.array(drawn)


def fake_verify(model, state, history, sampler, guess, start):
    out, n_new = np.full(guess.tokens.shape, -1), np.zeros(len(guess.tokens), int)
    for i in range(len(guess.tokens)):
        if not guess.n[i]:
            continue
        given = guess.given[i]
        text = model.write(state, guess.pages[i], start[i], guess.tokens[i, :given])
        new = [next_token(text, sampler.seed[i])]
        for drafted in guess.tokens[i, given : guess.n[i]]:
            if drafted != new[-1]:
                break
            text = model.write(state, guess.pages[i], len(text), [drafted])
            new.append(next_token(text, sampler.seed[i]))
        out[i, : len(new)], n_new[i] = new, len(new)
    return state, history, out, n_new


def fake_copy(state, source, target):
    state.keys[target] = state.keys[source]
    return state


@pytest.fixture
def _no_model(monkeypatch):
    monkeypatch.setattr(runner, "with_copied_page", fake_copy)
    monkeypatch.setattr(runner, "read", fake_read)
    monkeypatch.setattr(runner, "verify", fake_verify)
    monkeypatch.setattr(engine_module, "CHUNK", 8)


class Sometimes:
    """Right, wrong, or raising, by how long the text is."""

    def __init__(self, seed, raises):
        self.seed, self.raises = seed, raises

    def draft(self, text, most):
        if self.raises and len(text) % 11 == 0:
            raise RuntimeError("no idea")
        guess, longer = [], list(text)
        for _ in range(min(most, len(text) % 5)):
            longer.append(next_token(longer, self.seed) if len(text) % 3 else 0)
            guess.append(longer[-1])
        return Tree(guess, list(range(-1, len(guess) - 1)))


def said(prompt, seed, n, ends) -> list[int]:
    text = list(prompt)
    for _ in range(n):
        token = next_token(text, seed)
        if token in ends:
            break
        text.append(token)
    return text[len(prompt) :]


def check_pages(engine: Engine) -> None:
    """Every page is free or has as many holders as say that they hold it."""
    holders = Counter(page for request in engine.order for page in request.pages)
    holders.update(node.page for node in engine.prefixes.nodes)
    assert [holders[page] for page in range(engine.pool.n_pages)] == engine.pool.holders
    assert sorted(engine.pool.free) == [page for page in range(engine.pool.n_pages) if not holders[page]]


def play(data: st.DataObject) -> None:
    """One schedule: submit, cancel, end by a token, run out of pages or of time, raise, in any order."""
    ends = data.draw(st.sampled_from([(), (5,)]))
    n_pages, exact = data.draw(st.integers(6, 16)), data.draw(st.booleans())
    share, steady = data.draw(st.sampled_from([(True, False), (True, True), (False, False)]))
    how = {"share": share, "steady": steady, "exact": exact}
    engine = engine_of(Language(ends), max_batch=4, n_pages=n_pages, page_size=O, **how)
    requests, now = [], [0.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: now[0])
        for _ in range(data.draw(st.integers(1, 24))):
            action = data.draw(st.sampled_from(["submit", "submit", "step", "step", "step", "cancel", "wait"]))
            if action == "submit":
                common = data.draw(st.sampled_from([[], [7] * 9, list(range(17))]))  # beginnings that are shared
                prompt = common + data.draw(st.lists(st.integers(0, V - 1), min_size=1, max_size=20 - len(common)))
                seed, n = data.draw(st.integers(0, 9)), data.draw(st.integers(1, 30))
                raises = data.draw(st.integers(0, 5)) == 0
                draft = Sometimes(seed, raises) if data.draw(st.booleans()) else None
                timeout = data.draw(st.sampled_from([None, None, None, 3.0]))
                if -(-(len(prompt) + n) // O) > n_pages:
                    with pytest.raises(UserError, match="pages"):
                        engine.submit(prompt, max_tokens=n, seed=seed, temperature=1.0)
                    continue
                request = engine.submit(
                    prompt, max_tokens=n, seed=seed, temperature=1.0, draft=draft, timeout=timeout
                )
                requests.append((request, prompt, seed, n, raises))
            elif action == "step":
                engine.step()
                now[0] += 0.5
            elif requests and action == "cancel":
                data.draw(st.sampled_from(requests))[0].cancel()
            elif action == "wait":
                now[0] += 1.0
            check_pages(engine)
        engine.run()
    assert len(engine.pool.free) + len(engine.prefixes.nodes) == n_pages
    while engine.prefixes.evict():
        pass
    assert sorted(engine.pool.free) == list(range(n_pages))
    assert not engine.order
    assert not engine.waiting
    for request, prompt, seed, n, raises in requests:
        whole = said(prompt, seed, n, ends)
        assert request.done
        assert request.tokens == whole[: len(request.tokens)]
        if request.finish_reason in ("stop", "length"):
            assert request.tokens == whole
            assert (request.finish_reason == "length") == (len(whole) == n)
        assert (request.finish_reason == "error") == (request.error is not None)
        assert raises or request.error is None


LOOSE = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]


@pytest.mark.usefixtures("_no_model")
@settings(max_examples=60, suppress_health_check=LOOSE)
@given(data=st.data())
def test_no_schedule_loses_a_page_a_request_or_a_token(data):
    play(data)


@pytest.mark.slow
@pytest.mark.usefixtures("_no_model")
@settings(max_examples=10_000, suppress_health_check=LOOSE)
@given(data=st.data())
def test_no_schedule_of_ten_thousand_loses_anything(data):
    play(data)


@pytest.mark.usefixtures("_no_model")
def test_who_comes_first_is_served_first_and_nobody_starves():
    engine = engine_of(Language(), max_batch=2, n_pages=9, page_size=O)
    requests = [engine.submit([i] * 9, max_tokens=12, temperature=0.0) for i in range(8)]
    ended = []
    while engine.step():
        ended += [i for i, request in enumerate(requests) if request.done and i not in ended]
    assert ended == sorted(ended)
    assert len(ended) == 8


@pytest.mark.usefixtures("_no_model")
def test_a_long_prompt_holds_up_nobody():
    engine = engine_of(Language(), max_batch=2, page_size=O)
    short = engine.submit([1, 2], max_tokens=20, temperature=0.0)
    engine.step()
    engine.submit([3] * 60, max_tokens=2, temperature=0.0)
    before = len(short.tokens)
    for _ in range(6):
        engine.step()
    assert len(short.tokens) == before + 6


@pytest.mark.usefixtures("_no_model")
def test_text_comes_as_it_is_made_and_other_requests_go_on_meanwhile(tmp_path):
    engine = engine_of(Language(), max_batch=2, page_size=O)
    one, other = (engine.submit([i], max_tokens=5, temperature=0.0) for i in range(2))
    assert one.wait() is one
    assert len(one.tokens) == 5
    assert len(other.tokens) >= 4
    raising = engine.submit([1] * 10, max_tokens=5, temperature=0.0, draft=Sometimes(0, True))
    with pytest.raises(RuntimeError, match="no idea"):
        raising.wait()
    late = engine.submit([2], max_tokens=30, temperature=0.0)
    late.cancel()
    assert late.finish_reason == "cancelled"


def test_samplers_together_have_values_that_change_nothing_where_others_have_a_stage():
    one, two = new_sampler(temperature=0.0, seed=1), new_sampler(temperature=0.5, top_k=3, seed=2)
    both: Any = together([one, None, two])
    assert np.array_equal(both.temperature, [0, 0, 0.5])
    assert np.array_equal(both.top_k, [2**31 - 1, 2**31 - 1, 3])
    assert np.array_equal(both.seed, [1, 0, 2])
    assert both.repeat_penalty is None
    assert together([one, None]).temperature is None


def test_a_row_of_temperature_0_is_greedy_beside_rows_that_are_drawn():
    logits = jax.numpy.asarray(np.random.default_rng(0).normal(size=(3, 50)), "float32")
    both = together([new_sampler(temperature=0.0, seed=1), new_sampler(temperature=0.5, seed=2), None])
    draw = jax.jit(lambda sampler, logits, positions: sampler(logits, positions, None), compiler_options=QUICK)
    tokens = draw(both, logits, jax.numpy.arange(3, dtype="int32"))
    alone = draw(new_sampler(temperature=0.5, seed=2), logits[1:2], jax.numpy.arange(1, 2, dtype="int32"))
    assert tokens.tolist() == [int(logits[0].argmax()), int(alone[0]), int(logits[2].argmax())]


@pytest.mark.usefixtures("_no_model")
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"kind": "ring"}, "kind is 'ring', expected paged or"),
        ({"max_batch": 0}, "max_batch is 0, expected 1 or more"),
        ({"page_size": 1.5}, "page_size is 1.5, expected 1 or more"),
        ({"context": -1}, "context is -1, expected 1 or more"),
        ({"n_pages": 0}, "n_pages is 0, expected 1 or more"),
        ({"n_pages": 9, "kind": "contiguous"}, "n_pages is 9, expected none: this memory has no pages"),
    ],
)
def test_an_engine_that_cannot_be_is_refused_by_name(how, message):
    with pytest.raises(UserError, match=message):
        engine_of(Language(), **how)


@pytest.mark.usefixtures("_no_model")
def test_a_request_that_can_never_fit_is_refused_at_once():
    engine = engine_of(Language(), max_batch=2, n_pages=3, page_size=O)
    with pytest.raises(UserError, match="needs 4 pages for 13 tokens, but there are 3"):
        engine.submit([1] * 10, max_tokens=3)
    with pytest.raises(UserError, match="max_tokens is 0"):
        engine.submit([1], max_tokens=0)
    with pytest.raises(UserError, match="timeout is -1, expected seconds, more than 0"):
        engine.submit([1], timeout=-1)
    assert not engine.step()


@pytest.mark.usefixtures("_no_model")
def test_what_texts_have_in_common_is_read_once():
    engine = engine_of(Language(), max_batch=2, n_pages=12, page_size=O)
    common = list(range(10))
    one = engine.submit([*common, 20, 21], max_tokens=3, temperature=0.0, seed=0).wait()
    two = engine.submit([*common, 30, 31], max_tokens=3, temperature=0.0, seed=0).wait()
    again = engine.submit([*common, 20, 21, *one.tokens], max_tokens=3, temperature=0.0, seed=0).wait()
    # two pages of four and the two rows of the third that agree; then all three pages that the first filled
    assert [one.shared, two.shared, again.shared] == [0, 10, 12]
    for request in (one, two, again):
        assert request.tokens == said(request.prompt, 0, 3, ())


@pytest.mark.usefixtures("_no_model")
def test_requests_that_come_together_share_as_well():
    engine = engine_of(Language(), max_batch=6, page_size=O)
    requests = [engine.submit([*range(12), i], max_tokens=3, temperature=0.0, seed=0) for i in range(6)]
    engine.run()
    assert [request.shared for request in requests] == [0, 0, 12, 12, 12, 12]


@pytest.mark.usefixtures("_no_model")
def test_pages_of_ended_texts_go_when_others_need_them():
    engine = engine_of(Language(), max_batch=1, n_pages=5, page_size=O)
    for i in range(8):
        request = engine.submit([i] * 12, max_tokens=6, temperature=0.0, seed=0).wait()
        assert request.tokens == said(request.prompt, 0, 6, ())
        assert request.preempted == 0


@pytest.mark.usefixtures("quick_programs")
@pytest.mark.parametrize(("family", "shared"), [("llama", [0, 143, 143]), ("jamba", [0, 128, 128])])
def test_a_shared_beginning_changes_nothing_that_is_said(family, shared, tmp_path):
    """With a page copied, and with the snapshots of a hybrid."""
    lm = load(family, tmp_path)
    common = RNG.integers(3, 50, 140).tolist()
    prompts = [[*common, *tail] for tail in ([5, 6, 7, 8], [5, 6, 7, 8], [5, 6, 7, 9, 10])]
    options = {"temperature": 0.9, "repeat_penalty": 1.2, "frequency_penalty": 0.3, "seed": 5, "max_tokens": 8}
    engine = Engine(lm, max_batch=2, context=160)
    requests = [engine.submit(prompt, **options).wait() for prompt in prompts]
    assert [request.shared for request in requests] == shared
    alone = Engine(lm, max_batch=2, context=160, share=False)
    for request in requests:
        assert request.tokens == alone.submit(request.prompt, **options).wait().tokens
