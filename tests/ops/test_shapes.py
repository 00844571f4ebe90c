from collections import Counter

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from minillm import ops
from minillm.ops.cases import Op
from minillm.ops.judge.trials import cast
from minillm.ops.shapes import is_kind


def floats(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def ints(*shape: int) -> np.ndarray:
    return np.ones(shape, np.int32)


t, k = 3, 8


def good_calls() -> dict:
    """A good call of every checked form of every op: on the case with most inputs, from the op's own data."""
    calls = {}
    for op in ops.judge.OPS.values():
        if isinstance(op, Op):
            case = max(op.cases, key=lambda case: (len(case.inputs), len(case.options)))
            arrays = cast(op, op.draw(case, np.random.default_rng(0)), "float32")
            forms = {form.__name__: form for form in op.forms.values() if hasattr(form, "contracts")}
            calls |= {name: (form, arrays | dict(case.options)) for name, form in forms.items()}
    return calls


CALLS = good_calls()
every_array = pytest.mark.parametrize(
    ("name", "argument"),
    [(name, argument) for name, (form, call) in CALLS.items() for argument in form.contracts if argument in call],
)


@ops.shaped("x: ... t d float, y: d float, pos: t int")
def toy(x, y, pos=None, gain=1.0):
    return jnp.sum(x * y * gain, axis=-1)


X, Y, POS = floats(t, k), floats(k), ints(t)


def test_every_form_is_checked():
    forms = {form for op in ops.judge.OPS.values() if isinstance(op, Op) for form in op.forms.values()}
    assert all(hasattr(form, "contracts") for form in forms)


def test_the_check_leaves_nothing_in_the_program():
    checked, bare = (jax.jit(f).lower(X, Y, POS).as_text() for f in (toy, toy.__wrapped__))
    assert checked == bare


@every_array
def test_a_size_that_clashes_names_the_op_the_arguments_and_the_letter(name, argument):
    form, call = CALLS[name]
    dims = {one: contract.dims for one, contract in form.contracts.items() if one in call}
    counts = Counter(letter for letters in dims.values() for letter in letters)
    for axis, letter in enumerate(reversed(dims[argument]), start=1):
        if counts[letter] > 1 and letter != "...":
            wrong = call | {argument: np.repeat(call[argument], 2, -axis)}
            with pytest.raises(ValueError, match=rf"^{name}: \w+ \[.*\] has (\w+) = \d+, but \w+ has \1 = \d+$"):
                form(**wrong)


@every_array
def test_a_wrong_rank_names_the_op_and_the_argument(name, argument):
    form, call = CALLS[name]
    dims = form.contracts[argument].dims
    if dims != ("...",):
        wrong = call[argument].reshape(-1)
        wrong = wrong[0] if dims else wrong
        with pytest.raises(ValueError, match=rf"^{name}: {argument} has shape \[1?\], expected \["):
            form(**call | {argument: wrong})


@every_array
def test_a_wrong_kind_of_dtype_names_the_op_and_the_argument(name, argument):
    form, call = CALLS[name]
    wrong = np.zeros(call[argument].shape, np.int32 if is_kind(call[argument].dtype, "float") else np.float32)
    with pytest.raises(ValueError, match=rf"^{name}: {argument} \[.*\] has dtype \w+, expected (int|bool|float)$"):
        form(**call | {argument: wrong})


def test_messages_say_what_was_found_and_what_was_expected():
    for args, message in [
        ((X, floats(k + 1)), "toy: y [d] has d = 9, but x has d = 8"),
        ((X, Y, ints(t + 1)), "toy: pos [t] has t = 4, but x has t = 3"),
        ((X, Y[None]), "toy: y has shape [1, 8], expected [d]"),
        ((Y, Y), "toy: x has shape [8], expected [... t d]"),
        ((X, Y, POS.astype(np.float32)), "toy: pos [t] has dtype float32, expected int"),
        ((X, [1.0] * k), "toy: y is a list, expected an array"),
    ]:
        with pytest.raises(ValueError, match="toy") as error:
            toy(*args)
        assert str(error.value) == message


def test_dots_stand_for_any_leading_dimensions():
    for lead in ((), (2,), (2, 1, 2)):
        assert toy(floats(*lead, t, k), Y).shape == (*lead, t)


def test_none_and_unnamed_arguments_are_not_checked():
    assert np.array_equal(toy(X, Y, None, gain=2), np.full(t, 2 * k))


def test_an_unknown_argument_in_the_contract_is_refused_at_once():
    with pytest.raises(TypeError, match="g has no argument w, z"):

        @ops.shaped("x: a, z: a, w: a")
        def g(x):
            return x


def test_the_check_runs_while_tracing():
    assert np.array_equal(jax.jit(toy)(X, Y, POS), [k] * t)
    assert np.array_equal(jax.vmap(toy, in_axes=(0, None))(X[None], Y), [[k] * t])
    assert np.array_equal(jax.grad(lambda y: toy(X, y).sum())(Y), [t] * k)
    for transformed in (jax.jit(toy), jax.vmap(toy, in_axes=(0, None)), jax.grad(toy)):
        with pytest.raises(ValueError, match="toy: y"):
            transformed(X[None], floats(k + 1))


def test_a_checked_function_keeps_its_name_and_docstring():
    assert ops.rms_norm.__name__ == "rms_norm"
    assert "weight [d]" in (ops.rms_norm.__doc__ or "")


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        *((dtype, "float") for dtype in ("float16", "float32", "float64")),
        *((dtype, "float") for dtype in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float4_e2m1fn)),
        *((dtype, "int") for dtype in ("int8", "uint8", "int64", ml_dtypes.int4, ml_dtypes.uint4)),
        ("bool", "bool"),
    ],
)
def test_every_dtype_is_of_one_kind(dtype, kind):
    assert [other for other in ("int", "bool", "float") if is_kind(dtype, other)] == [kind]
