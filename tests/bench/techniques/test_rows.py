"""What other experiments have found is taken as it is."""

from typing import Any

import pytest

import minillm
from bench.techniques import rows
from bench.techniques.claims import CLAIMED
from bench.techniques.roof import Roof
from bench.techniques.rows import Run

FOUND = {"median": 4.0, "interval_95": [3.0, 5.0]}


def run(known: dict[str, Any]) -> Run:
    """Of results, on a machine that reads a byte and does ten operations a second."""
    roof = Roof({"bandwidth": 1.0, "float32": 10.0, "int8": 40.0}, 100, 1 / 16)
    return Run(known, minillm.load("tiny-draft"), roof, 1, 2)


def test_a_batch_is_predicted_to_give_each_text_less():
    batching = {"decoding": {"paged over alone": FOUND}, "same tokens as transformers": "16 of 16"}
    success = {"tokens_a_second": {f"{rows.CONTINUOUS} over {rows.STATIC}": FOUND}}
    row = rows.batching(run({"batching": batching, "success": success}))
    assert row.several is FOUND
    assert row.one == {"median": 0.25, "interval_95": [0.188, 0.312]}
    assert row.roof_one is not None
    assert row.roof_several is not None
    assert row.roof_several == pytest.approx(16 * row.roof_one)
    assert row.roof_one < 1 < row.roof_several


def test_drafts_are_those_that_were_measured(monkeypatch):
    monkeypatch.setattr(rows, "drafted", lambda rounds: FOUND)
    task = {"over plain": FOUND, "tokens": 9, "same_from_the_start": 9, "plain_ms": 1.0, "verify_ms": 1.5}
    task |= {"draft_passes": 2.0, "plain_steps": 1.0, "tokens_per_pass": 4.0, "kept_by_place": [1.0, 1.0, 1.0]}
    row = rows.speculation(
        run({"speculation": {"tasks": {name: {rows.LOOKUP: task} for name in ("copy", "essay")}}})
    )
    assert row.one is FOUND
    assert row.kld == "same text (9 of 9 tokens)"
    assert "gives 4 tokens for the price of 1.5 steps" in row.why
    assert row.roof_one is not None
    assert row.roof_several is not None
    assert row.roof_several < row.roof_one


def test_a_student_is_as_much_smaller_as_its_sizes_say():
    success = {"tokens_a_second": {f"{rows.DISTILLED} over {rows.PLAIN}": FOUND}}
    row = rows.distillation(run({"success": success | {"ways": {rows.DISTILLED: {"kld": [0.5, 0.4, 0.6]}}}}))
    assert row.one is FOUND
    assert row.roof_one is not None
    assert f"{row.roof_one:.0f} times fewer" in row.why
    assert row.roof_one > 2


def test_every_technique_has_a_claim(monkeypatch):
    monkeypatch.setattr(rows, "few_bits_and_channels", lambda rounds: ([], []))
    for name in ("int8", "int4", "speculation", "batching", "pruning", "flash_attention", "distillation"):
        monkeypatch.setattr(rows, name, lambda *given: None)
    assert rows.techniques(run({})).keys() == CLAIMED.keys()
