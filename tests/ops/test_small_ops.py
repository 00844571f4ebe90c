import pytest
from agreement import all_draws, assert_forms_agree, assert_laws_hold, assert_narrow_floats_run

from minillm.ops.small_cases import OPS

every_op = pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)


@every_op
def test_every_form_is_the_definition_on_ordinary_exact_and_nasty_inputs(op):
    for _, draw in all_draws(op):
        assert_forms_agree(op, draw)


@pytest.mark.parametrize("op", [op for op in OPS if op.laws], ids=lambda op: op.name)
def test_laws_hold_for_every_form(op):
    assert_laws_hold(op, op.cases[3:4])


@every_op
def test_bfloat16_goes_in_and_comes_out(op):
    assert_narrow_floats_run(op, op.cases[2])
