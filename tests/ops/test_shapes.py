import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from minillm import ops
from minillm.ops.shapes import is_kind


def floats(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def ints(*shape: int) -> np.ndarray:
    return np.ones(shape, np.int32)


def bools(*shape: int) -> np.ndarray:
    return np.ones(shape, bool)


b, t, s, h, g, k, v = 2, 3, 5, 4, 2, 8, 7
VALID = {  # a good call of every checked op
    "apply_rope": {"x": floats(b, t, h, k), "pos": ints(b, t), "freqs": floats(k // 2)},
    "keep_min_p": {"logits": floats(b, v), "p": floats(b)},
    "keep_top_k": {"logits": floats(b, v), "k": ints(b)},
    "keep_top_p": {"logits": floats(b, v), "p": floats(b)},
    "naive_attention": {
        "q": floats(b, t, h, k),
        "k": floats(b, s, g, k),
        "v": floats(b, s, g, k),
        "q_pos": ints(b, t),
        "k_pos": ints(b, s),
        "mask": bools(b, t, s),
    },
    "penalise_counts": {
        "logits": floats(b, v),
        "counts": ints(b, v),
        "presence": floats(b),
        "frequency": floats(b),
    },
    "penalise_repetition": {"logits": floats(b, v), "seen": bools(b, v), "penalty": floats(b)},
    "rms_norm": {"x": floats(b, t, k), "weight": floats(k), "eps": 1e-6},
    "scale_temperature": {"logits": floats(b, v), "temperature": floats(b)},
}
FREE = {  # dimensions that no other argument shares: op, argument, axis
    ("apply_rope", "x", 2),
    ("apply_rope", "x", 3),
    ("apply_rope", "freqs", 0),
    ("naive_attention", "q", 2),
    ("rms_norm", "x", 0),
    ("rms_norm", "x", 1),
    *((op, "logits", 1) for op in ("keep_min_p", "keep_top_k", "keep_top_p", "scale_temperature")),
}
every_op = pytest.mark.parametrize("name", VALID)
every_array = pytest.mark.parametrize(
    ("name", "argument"), [(op, name) for op, args in VALID.items() for name in args if name != "eps"]
)


@ops.shaped("x: ... t d float, y: d float, pos: t int")
def toy(x, y, pos=None, gain=1.0):
    return jnp.sum(x * y * gain, axis=-1)


X, Y, POS = floats(t, k), floats(k), ints(t)


def test_the_list_above_names_every_checked_op():
    assert set(VALID) == {name for name in ops.__all__ if hasattr(getattr(ops, name), "__wrapped__")}


@every_op
def test_the_check_leaves_nothing_in_the_program(name):
    op = getattr(ops, name)
    checked, bare = (jax.jit(f).lower(**VALID[name]).as_text() for f in (op, op.__wrapped__))
    assert checked == bare


@every_array
def test_a_size_that_clashes_names_the_op_the_arguments_and_the_letter(name, argument):
    right = VALID[name][argument]
    for axis in range(right.ndim):
        wrong = VALID[name] | {argument: np.repeat(right, 2, axis)}
        if (name, argument, axis) not in FREE:
            with pytest.raises(ValueError, match=rf"^{name}: \w+ \[.*\] has (\w) = \d+, but \w+ has \1 = \d+$"):
                getattr(ops, name)(**wrong)


@every_array
def test_a_wrong_rank_names_the_op_and_the_argument(name, argument):
    wrong = VALID[name] | {argument: VALID[name][argument].reshape(-1)[0]}
    with pytest.raises(ValueError, match=rf"^{name}: {argument} has shape \[\], expected \["):
        getattr(ops, name)(**wrong)


@every_array
def test_a_wrong_kind_of_dtype_names_the_op_and_the_argument(name, argument):
    right = VALID[name][argument]
    wrong = VALID[name] | {argument: right.astype(np.int32 if is_kind(right.dtype, "float") else np.float32)}
    with pytest.raises(ValueError, match=rf"^{name}: {argument} \[.*\] has dtype \w+, expected (int|bool|float)$"):
        getattr(ops, name)(**wrong)


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
