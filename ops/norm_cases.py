"""What the norms are tried on, and helpers that the other small ops share."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .cases import Arrays, Call, Case, Law, Op
from .norm import layer_norm, layer_norm_ref, rms_norm, rms_norm_ref


def new_case(name: str, options: Mapping[str, Any] | None = None, **sizes: int) -> Case:
    """One line of the tables below."""
    return Case(name, sizes, options or {})


def scaled(name: str, factor: float) -> Callable:
    """A style: one argument larger or smaller throughout."""
    return lambda arrays, case, rng: {**arrays, name: factor * arrays[name]}


def outlier_channel(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
    """One channel of x is far larger than the others."""
    x = arrays["x"].copy()
    x[..., rng.integers(x.shape[-1])] *= 512
    return {**arrays, "x": x}


def large_mean(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
    """x varies little around a large mean: mean(x^2) - mean^2 would cancel."""
    return {**arrays, "x": 256 + 4 * arrays["x"]}


def zero_rows(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
    """Every other row of x is zero."""
    x = arrays["x"].copy()
    x[..., ::2, :] = 0
    return {**arrays, "x": x}


NORM_CASES = (
    new_case("one number", {"eps": 1e-5}, t=1, d=1),
    new_case("two", {"eps": 1e-6}, t=1, d=2),
    new_case("large eps", {"eps": 1.0}, t=5, d=8),
    new_case("batch", {"eps": 1e-5}, b=2, t=3, d=33),
    new_case("small eps", {"eps": 1e-12}, t=7, d=127),
    new_case("128", {"eps": 1e-6}, b=3, t=2, d=128),
    new_case("129, large eps", {"eps": 0.5}, t=3, d=129),
    new_case("576", {"eps": 1e-5}, b=2, t=2, d=576),
    new_case("4097", {"eps": 1e-5}, t=2, d=4097),
    new_case("many rows", {"eps": 1e-6}, t=513, d=5),
)


def leading(case: Case, last: str) -> tuple[int, ...]:
    """The case's sizes in order, `last` at the end."""
    return (*(size for letter, size in case.sizes.items() if letter != last), case.sizes[last])


def draw_norm(*vectors: str) -> Callable[[Case, np.random.Generator], Arrays]:
    """x [... d] and the vectors [d] that are named."""

    def draw(case: Case, rng: np.random.Generator) -> Arrays:
        d = case.sizes["d"]
        return {"x": rng.normal(size=leading(case, "d")), **{name: rng.normal(size=d) for name in vectors}}

    return draw


def exact_norm(*vectors: str) -> Callable[[Case, np.random.Generator], Arrays]:
    """Zeros; for eps = 1 also rows of mean square 3, so that the root is 2, or of one number if there is a bias.

    Of rows that vary, only some ways to a mean are exact (Welford's is not): such rows have no exact LayerNorm.
    """

    def draw(case: Case, rng: np.random.Generator) -> Arrays:
        shape, d = leading(case, "d"), case.sizes["d"]
        x = np.zeros(shape)
        if case.options["eps"] == 1 and d % 4 == 0:
            row = np.tile([-3.0, 1, 1, 1], d // 4) if "bias" not in vectors else np.full(d, 4.0)
            x += rng.permuted(np.broadcast_to(row, shape), axis=-1) * rng.choice([-1, 1], (*shape[:-1], 1))
        return {"x": x, **{name: rng.integers(-4, 5, d).astype(float) for name in vectors}}

    return draw


def norm_op(name: str, ref: Callable, form: Callable, *vectors: str, **styles: Callable) -> Op:
    """An op x [... d], vectors [d] -> [... d]."""
    common = {"tiny": scaled("x", 2.0**-12), "huge": scaled("x", 2.0**12), "zero rows": zero_rows}
    return Op(
        name=name,
        ref=ref,
        forms={name: form},
        required=("x", *vectors),
        outputs=("y",),
        cases=NORM_CASES,
        draw=draw_norm(*vectors),
        styles={**common, "outlier channel": outlier_channel, **styles},
        exact=exact_norm(*vectors),
        laws=(Law("channels have no order", permuted_channels),),
        batched=("x",),
    )


def permuted_channels(call: Call, arrays: Arrays, options: Mapping[str, Any], rng: np.random.Generator):
    """Channels in another order give the same in that order."""
    order = rng.permutation(arrays["x"].shape[-1])
    (y,) = call(**arrays, **options)
    return (y[..., order],), call(**{name: x[..., order] for name, x in arrays.items()}, **options)


NORMS = (
    norm_op("rms_norm", rms_norm_ref, rms_norm, "weight"),
    replace(
        norm_op("layer_norm", layer_norm_ref, layer_norm, "weight", "bias", **{"large mean": large_mean}),
        cases=NORM_CASES[1:],  # of a single number nothing is left but rounding and the bias
    ),
)
