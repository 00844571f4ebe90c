"""Predictions follow from bytes and operations."""

import pytest

from bench.techniques.roof import BRIEF, Roof

# A machine that reads a byte and does ten operations a second; a model of 100 parameters.
ROOF = Roof({"bandwidth": 1.0, "float32": 10.0, "int8": 40.0}, 100, 1 / 16)
MEMORY = BRIEF / 16  # bytes of a text


def test_one_text_waits_for_memory_and_many_for_arithmetic():
    assert ROOF.step(1) == 400 + MEMORY
    assert ROOF.step(100) == pytest.approx(200 * 100 / 10)
    assert ROOF.step(1, share=0.5) == 200 + MEMORY
    assert ROOF.step(1, kind="int8", size=104) == 104 + MEMORY
    assert ROOF.step(1, rows=1600) == 400 + 100


def test_drafts_gain_the_tokens_of_a_pass_while_a_pass_costs_a_step():
    found = {"draft_passes": 2.0, "plain_steps": 1.0, "tokens_per_pass": 4.0, "kept_by_place": [1.0, 1.0, 1.0]}
    assert ROOF.drafted(found) == pytest.approx(9 / 3)  # a pass of four waits for memory, too
    assert 9 / (2 * 4 + 1) <= ROOF.drafted(found, 100) < ROOF.drafted(found)
