"""A conversation in a memory that is kept says what each of its turns would say alone, and reads nothing twice."""

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import tiny

import minillm
from minillm import generate, session
from minillm.cache import new_cache
from minillm.cache.prefix import agreement
from minillm.cache.spec import PLAIN
from minillm.errors import UserError
from minillm.session import Session, only_rows
from minillm.tokenizer import Tokenizer

NAMES = ("<end>", "<user>", "<assistant>", "<system>")
TEMPLATE = """
{%- for m in messages %}{{ {'user': '<user>', 'assistant': '<assistant>', 'system': '<system>'}[m.role] }}
{{- m.content }}{{ '<end>' }}{% endfor %}{{ '<assistant>' -}}
"""
FORGETFUL = TEMPLATE.replace("m.content", "m.content if m.role != 'assistant' else m.content[:1]")

GREEDY = {"temperature": 0.0, "repeat_penalty": 1.3}


@dataclass(frozen=True)
class Letters:
    """A character for every token, control tokens too, so that whatever is drawn reads back as it was."""

    v: int

    @property
    def controls(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(NAMES)}

    def encode(self, text: str, recognise: bool, affixes: bool) -> list[int]:
        pieces = re.findall("|".join([*NAMES, "."]) if recognise else ".", text, re.DOTALL)
        return [self.controls.get(one, ord(one[0]) - ord("一")) for one in pieces]

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(ord("一") + i) for i in ids)

    def vocabulary(self) -> dict[str, int]:
        return {self.decode([i]): i for i in range(self.v)}


@pytest.fixture(scope="module", params=["llama", "mamba", pytest.param("mistral", marks=pytest.mark.slow)])
def lm(request, tmp_path_factory, quick_programs):
    folder = tmp_path_factory.mktemp(request.param)
    tiny.unpacked(f"{request.param}_0", folder)
    found = minillm.load(folder, context=tiny.context(request.param, 0) or 512)
    found.config = replace(found.config, eos=())
    letters: Any = Letters(found.config.v)
    found.tokenizer = Tokenizer(letters, chat_template=TEMPLATE)
    return found


@pytest.fixture
def reads(monkeypatch, quick_programs):
    """How many tokens each pass took in."""
    taken: list[int] = []

    def advance(model, state, history, sampler, tokens, start, n):
        taken.append(int(n[0]))
        return generate.advance(model, state, history, sampler, tokens, start, n)

    monkeypatch.setattr(session, "advance", advance)
    return taken


def words(lm, n: int, seed: int = 0) -> str:
    ids = np.random.default_rng(seed).integers(len(NAMES), lm.config.v, n)
    return lm.tokenizer.decode(ids.tolist())


def alone(lm, talk: Session, question: str, **options) -> str:
    """The answer of a model that never heard any of it before."""
    return lm.generate(lm.chat_ids([*talk.messages, {"role": "user", "content": question}]), **options).text


@pytest.mark.parametrize(
    "sampling",
    [GREEDY, pytest.param({"temperature": 1.0, "seed": 3}, marks=pytest.mark.slow)],
    ids=["greedy", "drawn"],
)
def test_every_turn_says_what_it_would_say_alone_and_no_token_is_read_twice(lm, reads, sampling):
    options = {"max_tokens": 8, **sampling}
    talk = Session(lm, words(lm, 10), **options)
    for turn, length in enumerate((5, 1, 17)):
        question = words(lm, length, turn)
        expected, before = alone(lm, talk, question, **options), len(talk.messages)
        assert "".join(talk.ask(question)) == expected
        assert [m["content"] for m in talk.messages[before:]] == [question, expected]
        assert sum(reads) == len(talk.memory.text)
    assert talk.finish_reason == "length"


def test_a_template_that_cuts_earlier_answers_costs_reading_and_nothing_else(lm, reads, monkeypatch):
    monkeypatch.setattr(lm, "tokenizer", replace(lm.tokenizer, chat_template=FORGETFUL))
    options = {"max_tokens": 8, **GREEDY}
    talk = Session(lm, **options)
    for turn in range(3):
        question, before, already = words(lm, 4, turn), [*talk.memory.text], sum(reads)
        expected = alone(lm, talk, question, **options)
        assert "".join(talk.ask(question)) == expected
        kept = agreement(before, talk.memory.text)
        assert kept < len(before) or not turn  # the answer was cut
        again = 0 if only_rows(talk.memory.state) else kept
        assert sum(reads) - already == len(talk.memory.text) - kept + again


def test_what_was_said_can_be_taken_back(lm):
    options = {"max_tokens": 8, **GREEDY}
    talk = Session(lm, **options)
    for _ in talk.ask(words(lm, 9)):
        pass
    talk.messages[0]["content"] = words(lm, 9, seed=5)
    expected = alone(lm, talk, words(lm, 2), **options)
    assert "".join(talk.ask(words(lm, 2))) == expected
    talk.reset()
    expected = alone(lm, talk, words(lm, 2), **options)
    assert "".join(talk.ask(words(lm, 2))) == expected
    assert len(talk.messages) == 2


def test_an_answer_that_is_stopped_stays_as_far_as_it_came(lm):
    options = {"max_tokens": 8, **GREEDY}
    talk = Session(lm, **options)
    answer = talk.ask(words(lm, 5))
    begun = next(answer) + next(answer)
    answer.close()
    assert talk.finish_reason == "interrupted"
    assert talk.messages[1:] == [{"role": "assistant", "content": begun}]
    expected = alone(lm, talk, words(lm, 2), **options)
    assert "".join(talk.ask(words(lm, 2))) == expected


def test_a_pass_that_is_interrupted_leaves_nothing_half_remembered(lm, reads, monkeypatch):
    options = {"max_tokens": 8, **GREEDY}
    talk, whole = Session(lm, **options), session.advance

    def stopped(model, state, *rest):
        whole(model, state, *rest)  # which takes the memory away
        raise KeyboardInterrupt

    answer = talk.ask(words(lm, 5))
    begun = next(answer)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(session, "advance", stopped)
        next(answer)
    assert talk.messages[1:] == [{"role": "assistant", "content": begun}]
    expected = alone(lm, talk, words(lm, 2), **options)
    assert "".join(talk.ask(words(lm, 2))) == expected


def test_memory_grows_and_the_context_is_its_end(lm, monkeypatch):
    monkeypatch.setattr(session, "LEAST_MEMORY", 32)
    options, context = {"max_tokens": 8, **GREEDY}, lm.config.context
    talk = Session(lm, **options)
    assert "".join(talk.ask(words(lm, 5)))
    small, long = talk.memory.capacity, words(lm, 20)
    expected = alone(lm, talk, long, **options)
    assert "".join(talk.ask(long)) == expected
    assert talk.memory.capacity == 2 * small
    said = [*talk.messages]
    with pytest.raises(UserError, match=rf"conversation has \d+ tokens, but the context is {context}; /reset"):
        next(talk.ask(words(lm, context)))
    assert talk.messages == said


def test_options_and_models_that_do_not_fit_are_refused(lm):
    with pytest.raises(UserError, match="max_tokens is 0"):
        Session(lm, max_tokens=0)
    with pytest.raises(UserError, match="temperature is -1"):
        Session(lm, temperature=-1)
    for tokenizer in (None, replace(lm.tokenizer, chat_template=None)):
        other = minillm.LM(lm.config, tokenizer, lm.shapes, lm.weights)
        with pytest.raises(UserError, match="no chat template"):
            Session(other)


def test_rows_can_be_forgotten_and_states_and_rings_cannot():
    spec = PLAIN.with_length(16)
    rows, ring = new_cache(spec, g=1, k=2), new_cache(spec, g=1, k=2, window=4)
    assert only_rows((rows, (), rows))
    assert not only_rows((rows, ring))
    assert not only_rows((rows, np.zeros(3)))
