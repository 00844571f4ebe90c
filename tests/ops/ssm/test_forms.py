"""Every form against its definition, and what all of them promise."""

from functools import lru_cache, partial

import agreement
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import QUICK, all_draws, assert_same, call

from minillm.ops.cases import Case
from minillm.ops.ssm.cases import CAUSAL_CONV1D, GATED_DELTA, OPS, SELECTIVE_SCAN, SSD

FORMS = {form: op for op in OPS for form in op.forms}
CHUNKED = [form for form in FORMS if form.startswith("chunked")]

every_op = pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
every_form = pytest.mark.parametrize("form", FORMS)


def case_named(op, name) -> Case:
    return next(case for case in op.cases if case.name == name)


def draw(op, case, dtype="float64"):
    """Ordinary inputs, rounded to `dtype` as the judge does it."""
    arrays = op.draw(case, np.random.default_rng(0))
    narrow = {name: jnp.dtype("float32" if name in op.wide and dtype != "float64" else dtype) for name in arrays}
    return {name: x.astype(narrow[name]) if x.dtype == float else x for name, x in arrays.items()}


@lru_cache
def kernel(form):
    """A form in float64, shared by the tests, so that it is compiled once for each combination of shapes."""
    return agreement.compiled(FORMS[form], form)


def assert_is_definition(form, case, arrays, bound=1e-12, **tuning) -> None:
    op = FORMS[form]
    ideal = call(op.ref, op, arrays, case.options)
    found = kernel(form)(**arrays, **case.options, **tuning)
    for output, y, expected in zip(op.outputs, found, ideal, strict=True):
        assert_same(f"{case.name}, {output}", y, expected, bound)


def assert_is_definition_on_all_inputs(form, case, **tuning):
    with jax.enable_x64(True):
        for _, inputs in all_draws(FORMS[form]):
            assert_is_definition(form, case, inputs(case, np.random.default_rng(0)), **tuning)


@every_form
def test_every_form_is_the_definition_on_ordinary_exact_and_nasty_inputs(form):
    assert_is_definition_on_all_inputs(form, case_named(FORMS[form], "ragged"))


@pytest.mark.slow
@every_form
def test_every_form_is_the_definition_on_every_case(form):
    for case in FORMS[form].cases:
        assert_is_definition_on_all_inputs(form, case)


@every_form
def test_every_form_obeys_every_law(form):
    op, case = FORMS[form], case_named(FORMS[form], "ragged")
    for law in op.laws:
        with jax.enable_x64(True):
            sides = law.sides(kernel(form), draw(op, case), case.options, np.random.default_rng(1))
        assert sides, law.name
        for one, other in zip(*sides, strict=True):
            assert_same(law.name, one, other, 0 if law.exact else 1e-12)


@pytest.mark.parametrize("form", CHUNKED)
def test_the_size_of_a_chunk_does_not_matter(form):
    assert_is_definition_on_all_inputs(form, case_named(FORMS[form], "every state"), chunk=4)  # 9 tokens: 4, 4, 1


@every_form
def test_float32_is_enough_for_float32_results(form):
    case = case_named(FORMS[form], "decode one token")
    assert_is_definition(form, case, draw(FORMS[form], case, "float32"), 1e-5)


@pytest.mark.parametrize("form", GATED_DELTA.forms)
def test_a_log_decay_of_minus_infinity_forgets_everything(form):
    """No form takes the difference of two infinities."""
    case = case_named(GATED_DELTA, "ragged")
    arrays = draw(GATED_DELTA, case, "float32")
    arrays["log_decay"][:, 3] = -np.inf
    assert_is_definition(form, case, arrays, 1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@every_form
def test_results_have_the_dtype_of_the_inputs_and_states_are_wide(form, dtype):
    op = FORMS[form]
    case = case_named(op, "ragged")
    y, state = jax.eval_shape(lambda arrays: call(op.forms[form], op, arrays, case.options), draw(op, case, dtype))
    assert y.dtype == jnp.dtype(dtype)
    assert state.dtype == jnp.dtype(dtype if op is CAUSAL_CONV1D else "float32")


@every_op
def test_gradients_stay_finite_beside_padding_that_is_nan(op):
    case = Case("two of everything", dict.fromkeys(op.cases[0].sizes, 2), {}, case_named(op, "ragged").inputs)
    arrays = draw(op, case, "float32") | {"lengths": np.array([1, 0], np.int32)}
    for name in op.batched:
        if name not in ("state", "lengths"):
            arrays[name][0, 1:] = arrays[name][1] = np.nan

    def total(floats):
        y, state = call(list(op.forms.values())[-1], op, {**arrays, **floats}, case.options)
        return jnp.sum(y) + jnp.sum(state)

    floats = {name: x for name, x in arrays.items() if name != "lengths"}
    for name, gradient in jax.jit(jax.grad(total), compiler_options=QUICK)(floats).items():
        assert np.isfinite(gradient).all(), name
        assert gradient.any(), name


def test_states_computed_anew_give_the_gradients_of_states_kept():
    """The sequential scan keeps one state in sixteen; 37 tokens are no multiple of that."""
    case = Case("long", {"b": 2, "t": 37, "i": 3, "n": 2}, {"softplus": True}, ("D", "dt_bias", "state"))
    arrays = draw(SELECTIVE_SCAN, case)

    def total(floats, form):
        y, state = form(**floats, softplus=True)
        return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.cos(state))

    with jax.enable_x64(True):
        gradients = [jax.jit(jax.grad(partial(total, form=form)))(arrays) for form in SELECTIVE_SCAN.forms.values()]
    assert len(gradients) == 3
    for name, expected in gradients[0].items():
        for other in gradients[1:]:
            assert_same(name, other[name], expected, 1e-12)


@every_op
def test_every_optional_argument_matters(op):
    for case in op.cases:
        arrays = draw(op, case)
        y, state = call(op.ref, op, arrays, case.options)
        for name in case.inputs:
            others = {other: x for other, x in arrays.items() if other != name}
            y_without, state_without = call(op.ref, op, others, case.options)
            assert not np.array_equal(y, y_without) or not np.array_equal(state, state_without), name
        for name in case.options:
            others = {other: value for other, value in case.options.items() if other != name}
            with np.errstate(over="ignore", invalid="ignore"):  # without softplus steps are negative
                y_without, state_without = call(op.ref, op, arrays, others)
            assert not np.array_equal(y, y_without) or state.shape != state_without.shape, name


@pytest.mark.parametrize("form", CHUNKED)
def test_a_chunk_of_nothing_is_refused(form):
    op = FORMS[form]
    with pytest.raises(ValueError, match=f"{form}: chunk is 0, expected 1 or more"):
        call(op.forms[form], op, draw(op, op.cases[0], "float32"), {"chunk": 0})


@pytest.mark.parametrize("form", SSD.forms)
def test_heads_that_do_not_divide_into_groups_are_refused(form):
    arrays = draw(SSD, case_named(SSD, "ragged"), "float32")  # 6 heads
    arrays |= {name: np.zeros((4, 6, 4, 8), np.float32) for name in ("B", "C")}
    with pytest.raises(ValueError, match=f"{form}: x has h = 6 heads, not a multiple of B's g = 4"):
        call(SSD.forms[form], SSD, arrays, {})


def test_a_convolution_state_of_another_width_is_refused():
    arrays = draw(CAUSAL_CONV1D, case_named(CAUSAL_CONV1D, "ragged"), "float32")
    arrays["state"] = arrays["state"][:, 1:]
    with pytest.raises(ValueError, match=r"state \[b w-1 i\] has 2 inputs, but weight has w = 4"):
        call(CAUSAL_CONV1D.forms["causal_conv1d"], CAUSAL_CONV1D, arrays, {})


@every_form
def test_a_wrong_shape_is_refused_by_name(form):
    op = FORMS[form]
    arrays = draw(op, case_named(op, "ragged"), "float32")
    arrays["lengths"] = arrays["lengths"][:3]
    with pytest.raises(ValueError, match=rf"{form}: lengths \[b\] has b = 3, but \w+ has b = 4"):
        call(op.forms[form], op, arrays, {})
