"""Holds all forms of an op to its definition: in float64, on all cases at once, so that each form compiles once."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minillm.ops.cases import Arrays, Case, Op

# What is compared here is the mathematics; what XLA makes of it is for the judge. Compiles several times faster.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
AS_USERS = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}  # where every bit counts


def as_tuple(result) -> tuple:
    return result if isinstance(result, tuple) else (result,)


def call(function: Callable, op: Op, arrays: dict, options) -> tuple:
    named = {name: x for name, x in arrays.items() if name not in op.required}
    return as_tuple(function(*(arrays[name] for name in op.required), **named, **options))


@lru_cache
def program(op: Op, form: str):
    """A form on all cases of its op, as one program."""

    def run(inputs: Sequence[dict]):
        pairs = zip(inputs, op.cases, strict=True)
        return [call(op.forms[form], op, arrays, case.options) for arrays, case in pairs]

    return jax.jit(run, compiler_options=QUICK)


def assert_same(name: str, y, ideal, bound: float) -> None:
    """Integers and infinities are equal, other numbers within `bound` times the largest."""
    y, ideal = np.asarray(y), np.asarray(ideal)
    assert y.shape == ideal.shape, f"{name}: shape {y.shape}, expected {ideal.shape}"
    finite = np.isfinite(ideal)
    largest = np.abs(ideal[finite]).max(initial=0)
    allowed = bound * largest if jnp.issubdtype(y.dtype, jnp.floating) else 0
    assert np.array_equal(y[~finite], ideal[~finite]), f"{name}: infinities differ"
    error = np.abs(y[finite].astype(np.float64) - ideal[finite]).max(initial=0)
    assert error <= allowed, f"{name}: error {error:.3g} > {allowed:.3g}"


def assert_forms_agree(op: Op, draw: Callable[[Case, np.random.Generator], Arrays], seed: int = 0) -> None:
    """Every form equals the definition on every case, to 1e-12."""
    inputs = [draw(case, np.random.default_rng(seed)) for case in op.cases]
    ideals = [call(op.ref, op, arrays, case.options) for arrays, case in zip(inputs, op.cases, strict=True)]
    with jax.enable_x64(True):
        for form in op.forms:
            for case, found, ideal in zip(op.cases, program(op, form)(inputs), ideals, strict=True):
                for output, y, expected in zip(op.outputs, found, ideal, strict=True):
                    assert_same(f"{form}, {case.name}, {output}", y, expected, 1e-12)


def all_draws(op: Op) -> Iterable[tuple[str, Callable[[Case, np.random.Generator], Any]]]:
    """Ordinary, exact and nasty inputs by name."""
    yield "ordinary", op.draw
    if op.exact:
        yield "exact", op.exact
    for name, style in op.styles.items():
        yield name, lambda case, rng, style=style: style(op.draw(case, rng), case, rng)


def compiled(op: Op, form: str):
    """A form that takes everything by keyword, NumPy in and float64 out; one program for each set of options."""
    programs = {}

    def run(**given) -> tuple:
        arrays = {name: x for name, x in given.items() if isinstance(x, np.ndarray)}
        options = {name: x for name, x in given.items() if name not in arrays}
        key = tuple(options.items())
        if key not in programs:
            function = partial(call, op.forms[form], op, options=options)
            programs[key] = jax.jit(function, compiler_options=QUICK)
        return tuple(np.asarray(y, np.float64) for y in programs[key](arrays))

    return run


def assert_laws_hold(op: Op, cases: Sequence[Case]) -> None:
    """Every law of the op itself holds for every form in float64; each has a use for one of the cases."""
    for form in op.forms:
        kernel, used = compiled(op, form), set()
        for law, case in itertools.product(op.laws, cases):
            arrays, rng = op.draw(case, np.random.default_rng(1)), np.random.default_rng(2)
            with jax.enable_x64(True):
                sides = law.sides(kernel, arrays, case.options, rng)
            if sides is not None:
                used.add(law.name)
                for one, other in zip(*sides, strict=True):
                    assert_same(f"{form}, {law.name}, {case.name}", one, other, 0 if law.exact else 1e-12)
        assert used == {law.name for law in op.laws}


def assert_narrow_floats_run(op: Op, case: Case) -> None:
    """bfloat16 goes in and comes out, with an error of a few of its roundings."""
    wide = {"float32": op.wide, "bfloat16": set(op.required) - set(op.wide)}
    arrays = op.draw(case, np.random.default_rng(3))
    for dtype, names in wide.items():
        arrays |= {n: jnp.asarray(arrays[n], dtype) for n in names if n in arrays and arrays[n].dtype == np.float64}
    ideal = call(op.ref, op, {name: np.asarray(x) for name, x in arrays.items()}, case.options)
    for name, form in op.forms.items():
        run = jax.jit(partial(call, form, op, options=case.options), compiler_options=QUICK)
        for output, y, expected in zip(op.outputs, run(arrays), ideal, strict=True):
            assert_same(f"{name}, {output}", y, expected, 2.0**-6)
