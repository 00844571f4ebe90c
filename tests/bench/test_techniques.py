"""Predictions follow from bytes and operations; what others measured is taken as it is."""

from typing import Any

import pytest

from bench import techniques
from bench.techniques import Row, Run

FOUND = {"median": 4.0, "interval_95": [3.0, 5.0]}


@pytest.fixture
def run() -> Run:
    """A machine that reads a byte and does ten operations a second; a model of 100 parameters."""
    made = Run.__new__(Run)
    made.limits = {"bandwidth": 1.0, "float32": 10.0, "int8": 40.0}
    made.parameters, made.memory, made.rounds, made.documents = 100, 8, 1, 2
    made.known = {name: {} for name in techniques.NEEDED}
    return made


def test_one_text_waits_for_memory_and_many_for_arithmetic(run):
    assert run.step(1) == 400 + 8
    assert run.step(100) == pytest.approx(200 * 100 / 10)
    assert run.step(1, share=0.5) == 200 + 8
    assert run.step(1, kind="int8", size=104) == 104 + 8


def test_a_batch_is_predicted_to_give_each_text_less(run):
    run.known["batching"] = {"decoding": {"paged over alone": FOUND}, "same tokens as transformers": "16 of 16"}
    run.known["success"] = {"tokens_a_second": {f"{techniques.CONTINUOUS} over {techniques.STATIC}": FOUND}}
    row = techniques.batching(run)
    assert row.several is FOUND
    assert row.one == {"median": 0.25, "interval_95": [0.188, 0.312]}
    assert row.roof_one is not None
    assert row.roof_several is not None
    assert row.roof_several == pytest.approx(16 * row.roof_one)
    assert row.roof_one < 1 < row.roof_several


def test_drafts_are_predicted_by_the_tokens_of_a_pass(run, monkeypatch):
    monkeypatch.setattr(techniques, "drafted", lambda rounds: FOUND)
    task = {"over plain": FOUND, "tokens": 9, "same_from_the_start": 9, "plain_ms": 1.0, "verify_ms": 1.5}
    task |= {"draft_passes": 2.0, "plain_steps": 1.0, "tokens_per_pass": 4.0, "kept_by_place": [1.0, 1.0, 1.0]}
    run.known["speculation"] = {"tasks": {name: {techniques.LOOKUP: task} for name in ("copy", "essay")}}
    row = techniques.speculation(run)
    assert row.one is FOUND
    assert row.roof_one is not None
    assert row.roof_one == pytest.approx(9 / 3)  # a pass of four waits for memory, too, and costs a step
    assert row.roof_several is not None
    assert row.roof_several < row.roof_one


def test_a_line_says_what_was_found_and_what_is_not_known(run):
    known = {"successes": 3, "of": 12, "cost_of_1000": 1.5}
    success = {"ways": {techniques.PLAIN: known, "way": known | {"successes": 0, "cost_of_1000": None}}}
    found = {
        "one": Row("2x (somebody)", 2.0, FOUND, None, None, [0.5, 0.4, 0.6], "way", "because"),
        "other": Row("3x (somebody)", 2.0, FOUND, 1.0, FOUND, "same text", None, "because"),
    }
    shown = techniques.table_of(found, success)
    one, other, plain = shown["rows"]
    assert one == [
        "one",
        "2x (somebody)",
        "2.0x",
        "4.00x (3.00 – 5.00)",
        "–",
        "–",
        "0.5000",
        "0 of 12",
        "none",
        "because",
    ]
    assert other[5:9] == ["4.00x (3.00 – 5.00)", "same text", "–", "–"]
    assert plain[7:9] == ["3 of 12", "1.50"]
    assert all(len(line) == len(shown["columns"]) for line in shown["rows"])


@pytest.mark.usefixtures("quick_programs")
def test_blocks_and_drafts_say_what_is_said_without(monkeypatch):
    monkeypatch.setattr(techniques, "MODEL", "tiny-draft")
    at_once = techniques.rows.AT_ONCE
    monkeypatch.setattr(techniques.rows, "AT_ONCE", at_once)  # what contestants set is set back
    prompt = [*range(10, 40)]
    said: Any
    said, seconds = techniques.open_reader(at_once)(prompt, 4)
    assert len(said["text"]) == 5
    assert min(said["first"], said["after"], seconds) > 0
    texts = [techniques.open_engine(draft)([prompt, prompt[::-1]], 6)[0] for draft in (None, techniques.LOOKUP)]
    assert texts[0] == texts[1]
    assert texts[0][:5] == said["text"]
