"""What running the experts is tried on: idle and crowded experts, odd sizes, full buffers."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..cases import Arrays, Call, Case, Law, Op
from .capacity import moe_capacity
from .dense import moe_dense
from .ref import moe_capacity_ref, moe_ref
from .route_cases import ROUTE
from .sorted import moe_sorted


def new_case(name: str, t: int, d: int, f: int, e: int, m: int, **options) -> Case:
    """One line of the tables below."""
    return Case(name, {"t": t, "d": d, "f": f, "e": e, "m": m}, options)


MOE_CASES = (
    new_case("one of everything", t=1, d=1, f=1, e=1, m=1),
    new_case("one expert", t=3, d=4, f=6, e=1, m=1),
    new_case("every expert", t=5, d=8, f=8, e=3, m=3),
    new_case("one token, most experts idle", t=1, d=16, f=8, e=32, m=4),
    new_case("two of eight", t=7, d=8, f=12, e=8, m=2),
    new_case("odd sizes", t=13, d=7, f=5, e=5, m=2),
    new_case("small experts, many of them", t=9, d=16, f=3, e=64, m=8),
    new_case("beyond a tile", t=129, d=33, f=17, e=3, m=1),
    new_case("many tokens", t=600, d=3, f=4, e=4, m=2),
)
CAPACITY_CASES = (
    new_case("room for one", t=1, d=1, f=1, e=1, m=1, capacity=1),
    new_case("only the first is served", t=5, d=4, f=3, e=2, m=1, capacity=1),
    new_case("every expert, half the tokens", t=6, d=3, f=4, e=3, m=3, capacity=3),
    new_case("some dropped", t=12, d=8, f=6, e=4, m=2, capacity=5),
    new_case("room for all", t=9, d=8, f=6, e=4, m=2, capacity=9),
    new_case("many tokens", t=600, d=3, f=4, e=4, m=2, capacity=257),
)


def draw_moe(case: Case, rng: np.random.Generator) -> Arrays:
    """Unit tokens, weights that sum to 1, experts at random; there are at least m experts."""
    t, d, f, m = (case.sizes[letter] for letter in "tdfm")
    e = max(case.sizes["e"], m)
    weights = rng.random((t, m)) + 0.1
    return {
        "x": rng.normal(size=(t, d)),
        "weights": weights / weights.sum(axis=1, keepdims=True),
        "experts": np.argsort(rng.random((t, e)), axis=1)[:, :m].astype(np.int32),
        "w_gate": rng.normal(size=(e, d, f)) / np.sqrt(d),
        "w_up": rng.normal(size=(e, d, f)) / np.sqrt(d),
        "w_down": rng.normal(size=(e, f, d)) / np.sqrt(f),
    }


def popular_expert(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
    """Every token wants expert 0."""
    experts = arrays["experts"].copy()
    experts[~(experts == 0).any(axis=1), 0] = 0
    return {**arrays, "experts": experts}


def huge_idle_experts(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
    """Experts that nobody chose would overflow."""
    idle = ~np.isin(np.arange(len(arrays["w_up"])), arrays["experts"])
    huge = {name: np.where(idle[:, None, None], 2.0**14, arrays[name]) for name in ("w_gate", "w_up", "w_down")}
    return {**arrays, **huge}


def outlier_channel(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
    """One channel of the tokens is far larger than the others."""
    x = arrays["x"].copy()
    x[:, rng.integers(x.shape[1])] *= 8
    return {**arrays, "x": x}


def uneven_weights(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
    """Weights of any sum, the last expert's 0."""
    weights = 16 * arrays["weights"]
    weights[:, -1] = 0
    return {**arrays, "weights": weights}


def exact_moe(case: Case, rng: np.random.Generator) -> Arrays:
    """Gates are 0 or 64, and silu(64) = 64 in float64 too; everything else is a small power of two."""
    arrays = draw_moe(case, rng)
    (t, d), (e, _, f) = arrays["x"].shape, arrays["w_up"].shape
    return {
        **arrays,
        "x": np.eye(d)[rng.integers(d, size=t)],
        "weights": rng.choice([1.0, 2.0], arrays["weights"].shape),
        "w_gate": rng.choice([0.0, 64.0], (e, d, f)),
        "w_up": rng.choice([-1.0, 0, 1, 2], (e, d, f)),
        "w_down": rng.choice([-1.0, 0, 1], (e, f, d)) / 64,
    }


def renamed(call: Call, arrays: Arrays, options: Mapping[str, Any], rng: np.random.Generator):
    """Which number an expert has does not matter."""
    order = rng.permutation(len(arrays["w_up"]))
    moved = {name: arrays[name][order] for name in ("w_gate", "w_up", "w_down")}
    experts = np.argsort(order)[arrays["experts"]].astype(np.int32)
    return call(**arrays, **options), call(**{**arrays, **moved, "experts": experts}, **options)


def reordered(call: Call, arrays: Arrays, options: Mapping[str, Any], rng: np.random.Generator):
    """In which order a token names its experts does not matter."""
    if arrays["experts"].shape[1] < 2:
        return None
    moved = {name: arrays[name][:, ::-1].copy() for name in ("weights", "experts")}
    return call(**arrays, **options), call(**{**arrays, **moved}, **options)


def doubled(call: Call, arrays: Arrays, options: Mapping[str, Any], rng: np.random.Generator):
    """Twice the weights, twice the result."""
    (y,) = call(**arrays, **options)
    return (2 * y,), call(**{**arrays, "weights": 2 * arrays["weights"]}, **options)


def first_come(call: Call, arrays: Arrays, options: Mapping[str, Any], rng: np.random.Generator):
    """Later tokens cannot push out earlier ones."""
    t = len(arrays["x"])
    if t < 2:
        return None
    fewer = {name: arrays[name][: t // 2] for name in ("x", "weights", "experts")}
    (y,) = call(**arrays, **options)
    return (y[: t // 2],), call(**{**arrays, **fewer}, **options)


MOE_LAWS = (
    Law("experts have no order", renamed),
    Law("a token's experts have no order", reordered),
    Law("linear in the weights", doubled, exact=True),
)
MOE_STYLES = {
    "popular expert": popular_expert,
    "huge idle experts": huge_idle_experts,
    "outlier channel": outlier_channel,
    "uneven weights": uneven_weights,
}
MOE_ARRAYS = ("x", "weights", "experts", "w_gate", "w_up", "w_down")

OPS = (
    ROUTE,
    Op(
        name="moe",
        ref=moe_ref,
        forms={"moe_dense": moe_dense, "moe_sorted": moe_sorted, "moe_capacity": moe_capacity},
        required=MOE_ARRAYS,
        outputs=("y",),
        cases=MOE_CASES,
        draw=draw_moe,
        styles=MOE_STYLES,
        exact=exact_moe,
        laws=MOE_LAWS,
        batched=("x", "weights", "experts"),
        wide=("weights",),
    ),
    Op(
        name="moe_capacity",
        ref=moe_capacity_ref,
        forms={"moe_capacity": moe_capacity},
        required=MOE_ARRAYS,
        outputs=("y",),
        cases=CAPACITY_CASES,
        draw=draw_moe,
        styles=MOE_STYLES,
        exact=exact_moe,
        laws=(Law("first come, first served", first_come), *MOE_LAWS[:1], *MOE_LAWS[2:]),
        wide=("weights",),
    ),
)
