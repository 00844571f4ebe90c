"""Every op and every form is timed, on each kind of case, with the arguments the op itself draws."""

from dataclasses import replace

import numpy as np
import pytest

from bench import ops
from minillm.ops.judge import OPS


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(ops, "wait_for_quiet", lambda: None)


def test_every_op_with_several_forms_has_sizes_of_its_own():
    several = {name for name, op in OPS.items() if len(op.forms) > 1}
    assert several == ops.LARGE.keys()
    for name in several:
        assert ops.LARGE[name].keys() <= {letter for case in OPS[name].cases for letter in case.sizes}


def test_enlarged_cases_keep_their_options_and_their_single_tokens():
    op = OPS["attention"]
    cases = {case.name: case for case in ops.cases_of(op)}
    for case in op.cases:
        if case.name in cases:
            large = cases[case.name]
            assert (large.options, large.inputs) == (case.options, case.inputs)
            assert (large.sizes["t"] == 1) == (case.sizes["t"] == 1)
            assert ops.bytes_of(op, large) >= ops.FEWEST
    assert {"window", "decode one query", "draft tree", "everything at once"} <= cases.keys()
    assert "one token" not in cases  # all that a clock would see is the call


@pytest.mark.parametrize("name", ["cross_entropy", "sampling", "rms_norm"])
def test_the_first_form_is_what_others_are_compared_with(name, monkeypatch):
    monkeypatch.setattr(ops, "LARGE", {name: {}})
    monkeypatch.setattr(ops, "FEWEST", 0)
    monkeypatch.setattr(ops, "DRAWS", 64)
    op = replace(OPS[name], cases=OPS[name].cases[-2:])
    found = ops.measure(op, rounds=2)
    first, *others = op.forms
    assert found["times_as_fast"].keys() == {f"{form} over {first}" for form in others}
    assert all(set(times) == {case.name for case in op.cases} for times in found["microseconds"].values())
    for form in others:
        ratio = found["times_as_fast"][f"{form} over {first}"]
        assert min(ratio["by_case"].values()) / 2 <= ratio["median"] <= 2 * max(ratio["by_case"].values())


def test_a_program_gives_what_its_form_gives():
    op = OPS["cross_entropy"]
    case = next(case for case in op.cases if case.name == "batch")
    arrays = ops.drawn(op, case)
    for form in op.forms.values():
        np.testing.assert_allclose(ops.program(op, form, case)(), form(**arrays), rtol=1e-5, atol=1e-5)
