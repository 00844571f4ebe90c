"""All forms of attention, paged and latent attention held to their definitions in float64, and all to the laws."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import QUICK
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import assert_within

from minillm.ops.attention.cases import ATTENTION
from minillm.ops.attention.cases_mla import MLA
from minillm.ops.attention.cases_paged import PAGED_ATTENTION
from minillm.ops.cases import Arrays, Case, Op

OPS = (ATTENTION, PAGED_ATTENTION, MLA)

# Each input and option at least once; all cases in the slow tests, and where the judge looks for false alarms.
FEW = "one channel", "decode one query", "window on both sides, multi-query", "sinks", "alibi", "packed sequences"
FEW += "ragged positions, not causal", "draft tree", "everything at once", "64 keys", "600 keys"
FEW += "decode", "pages of five rows, narrow values", "window of one on both sides", "soft cap and scale"
FEW += "640 tokens", "latent narrower than a head, one rotated channel", "not causal", "scale and log-sum-exp"
CASES = [
    pytest.param(op, case, id=f"{op.name}-{case.name}", marks=() if case.name in FEW else pytest.mark.slow)
    for op in OPS
    for case in op.cases
]
FORMS = [pytest.param(op, form, id=form) for op in OPS for form in op.forms]


def invoke(op: Op, function, arrays: Arrays, options) -> tuple:
    """The op's outputs, always as a tuple."""
    optional = {name: x for name, x in arrays.items() if name not in op.required}
    result = function(*(arrays[name] for name in op.required), **optional, **options)
    return result if isinstance(result, tuple) else (result,)


@cache
def program(op: Op, forms: tuple[str, ...], options: tuple):
    """The forms as one compiled function of the arrays."""
    functions = {name: op.forms[name] for name in forms}
    return jax.jit(
        lambda arrays: {name: invoke(op, form, arrays, dict(options)) for name, form in functions.items()},
        compiler_options=QUICK,
    )


def run(op: Op, case: Case, arrays: Arrays) -> dict[str, tuple[np.ndarray, ...]]:
    """What every form makes of the arrays, in float64."""
    with jax.enable_x64(True):
        return jax.device_get(program(op, tuple(op.forms), tuple(case.options.items()))(arrays))


def assert_agree(found, ideal, relative: float) -> None:
    """All outputs are float64 and within `relative` of the largest finite ideal (or of 1)."""
    for x, y in zip(found, ideal, strict=True):
        assert x.dtype == np.float64
        assert_within(x, y, relative * max(1, np.max(np.abs(y), initial=0, where=np.isfinite(y))))


@pytest.mark.parametrize(("op", "case"), CASES)
def test_every_form_is_its_definition_on_ordinary_and_on_nasty_inputs(op, case):
    rng = np.random.default_rng(0)
    styles = op.styles if case.options or case.inputs else {}
    inputs = {"": op.draw(case, rng)} | {
        name: style(op.draw(case, rng), case, rng) for name, style in styles.items()
    }
    for name, arrays in inputs.items():
        ideal = invoke(op, op.ref, arrays, case.options)
        for found in run(op, case, arrays).values():
            assert_agree(found, ideal, 1e-10 if name else 1e-12)  # nasty scores are as large as 1e4


@pytest.mark.parametrize(("op", "case"), CASES)
def test_look_ups_are_exact_to_the_bit(op, case):
    arrays = op.exact(case, np.random.default_rng(1))
    if arrays is None:  # an average is not exact
        assert "softcap" in case.options or case.sizes["k"] == 1
        return
    narrow = {name: x.astype(jnp.bfloat16) if x.dtype == float else x for name, x in arrays.items()}
    for name, x in arrays.items():
        assert name in ("v", "v_pages", "latent") or np.array_equal(x, narrow[name].astype(x.dtype), equal_nan=True)
    ideal = invoke(op, op.ref, arrays, case.options)[0]
    exact = ideal == ideal.astype(jnp.bfloat16).astype(float)
    assert exact.all() or "softcap" in case.options or min(case.sizes["k"], case.sizes.get("l", 2)) == 1
    for y, *_ in run(op, case, arrays).values():
        assert np.array_equal(y[exact], ideal[exact])


def sides_agree(op: Op, law, call, case: Case, seed: int) -> bool:
    """Try a law; False if the case has no use for it."""
    rng = np.random.default_rng(seed)
    sides = law.sides(call, op.draw(case, rng), case.options, rng)
    if sides is None:
        return False
    for x, y in zip(*sides, strict=True):
        assert x.size
        assert np.array_equal(x, y) if law.exact else np.allclose(x, y, rtol=1e-10, atol=1e-10)
    return True


@pytest.mark.parametrize(("op", "law"), [pytest.param(op, law, id=law.name) for op in OPS for law in op.laws])
def test_the_definition_obeys_the_laws(op, law):
    def call(**given):
        arrays = {name: x for name, x in given.items() if isinstance(x, np.ndarray)}
        return invoke(op, op.ref, arrays, {name: x for name, x in given.items() if name not in arrays})

    assert sum(sides_agree(op, law, call, case, seed=2) for case in op.cases if "keys" not in case.name) >= 1


@pytest.mark.parametrize(("op", "form"), FORMS)
def test_every_form_obeys_the_laws_of_equal_bits(op, form):
    """The other laws follow from those of the definition."""

    def call(**given):
        arrays = {name: x for name, x in given.items() if isinstance(x, np.ndarray)}
        options = tuple((name, x) for name, x in given.items() if name not in arrays)
        with jax.enable_x64(True):
            return jax.device_get(program(op, (form,), options)(arrays)[form])

    richest = sorted(op.cases, key=lambda case: -len(case.inputs) - len(case.options))
    for law in op.laws:
        assert not law.exact or any(sides_agree(op, law, call, case, seed=3) for case in richest), law.name


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_no_seed_tells_a_form_from_its_definition(op, seed):
    case = max(op.cases, key=lambda case: len(case.inputs) + len(case.options))
    arrays = op.draw(case, np.random.default_rng(seed))
    ideal = invoke(op, op.ref, arrays, case.options)
    for found in run(op, case, arrays).values():
        assert_agree(found, ideal, 1e-11)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_any_smaller_sizes_are_legal(op):
    rng = np.random.default_rng(4)
    for case in op.cases:
        for _ in range(3):
            sizes = {
                letter: int(rng.integers(letter != "past", min(size, 6) + 1)) for letter, size in case.sizes.items()
            }
            smaller = Case(case.name, sizes, case.options, case.inputs)
            for arrays in filter(None, (op.draw(smaller, rng), op.exact(smaller, rng))):
                for style in (lambda arrays, *_: arrays, *op.styles.values()):
                    y = invoke(op, op.ref, style(arrays, smaller, rng), case.options)[0]
                    assert np.isfinite(y).all()
