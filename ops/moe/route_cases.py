"""What routers are tried on: published configurations in small, and what is easy to get wrong."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..cases import Arrays, Call, Case, Law, Op
from .ref import route_ref
from .router import route


def new_case(name: str, t: int, e: int, *inputs: str, **options) -> Case:
    """One line of the table below."""
    return Case(name, {"t": t, "e": e}, options, inputs)


CASES = (
    new_case("one expert", t=1, e=1, top_k=1),
    new_case("one of two", t=3, e=2, top_k=1),
    new_case("every expert", t=2, e=4, top_k=4),
    new_case("groups of one", 4, 4, "bias", top_k=2, groups=4, top_groups=3),
    new_case("Mixtral", t=7, e=8, top_k=2),
    new_case("Llama 4", t=5, e=17, top_k=1, scoring="sigmoid", normalise=False),
    new_case("sigmoid without bias", t=5, e=31, top_k=3, scoring="sigmoid"),
    new_case("softmax with bias", 6, 33, "bias", top_k=6),
    new_case("DeepSeek-V2", t=6, e=32, top_k=6, groups=8, top_groups=3, normalise=False, scale=16.0),
    new_case("OLMoE", t=5, e=64, top_k=8, normalise=False),
    new_case("DeepSeek-V3", 6, 64, "bias", top_k=8, groups=8, top_groups=4, scoring="sigmoid", scale=2.5),
    new_case("gpt-oss", t=9, e=128, top_k=4),
    new_case("many tokens", t=600, e=8, top_k=2),
)


def draw_route(case: Case, rng: np.random.Generator) -> Arrays:
    """Logits of a usual spread. e is rounded up to whole groups with enough experts to choose from."""
    groups, top_groups = case.options.get("groups", 1), case.options.get("top_groups", 1)
    members = max(-(-case.sizes["e"] // groups), -(-case.options["top_k"] // top_groups))
    arrays = {"logits": 2 * rng.normal(size=(case.sizes["t"], groups * members))}
    if "bias" in case.inputs:
        arrays["bias"] = 0.3 * rng.normal(size=groups * members)
    return arrays


def ties(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
    """Logits on a coarse grid, 0 and -0 among them; with a bias off zero, where no two sums tie by accident."""
    if "bias" not in arrays:
        return {"logits": np.round(arrays["logits"])}
    return {"logits": np.round(arrays["logits"]) + 0.25, "bias": np.round(2 * arrays["bias"]) / 2}


def all_equal(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
    """The router has no opinion."""
    return {**arrays, "logits": np.zeros_like(arrays["logits"])}


def peaked(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
    """One expert a token stands far above the rest."""
    logits = arrays["logits"].copy()
    logits[np.arange(len(logits)), rng.integers(logits.shape[1], size=len(logits))] += 30
    return {**arrays, "logits": logits}


def far_from_zero(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
    """Large logits that differ little, which a softmax bears and a sigmoid does not."""
    return arrays if case.options.get("scoring") == "sigmoid" else {**arrays, "logits": arrays["logits"] + 100}


def bias_decides(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
    """A bias so large that it makes the choice alone."""
    return {**arrays, "bias": 20 * arrays["bias"]} if "bias" in arrays else arrays


def exact_route(case: Case, rng: np.random.Generator) -> Arrays:
    """As many logits as some power of two are 0, the others vanish: scores are 0, 1/2 or powers of two."""
    arrays = draw_route(case, rng)
    hot = 2 ** int(rng.integers(int(np.log2(case.options["top_k"])) + 1))
    logits = np.full(arrays["logits"].shape, -1024.0)
    logits[:, :hot] = 0
    arrays["logits"] = rng.permuted(logits, axis=1)
    if "bias" in arrays:
        arrays["bias"] = rng.integers(4, size=len(arrays["bias"])) / 64
    return arrays


def renamed_experts(call: Call, arrays: Arrays, options: Mapping[str, Any], rng: np.random.Generator):
    """Experts in another order are chosen all the same, where no two tie."""
    if "bias" in arrays or "groups" in options:
        return None
    t, e = arrays["logits"].shape
    logits = rng.permuted(np.tile((np.arange(e) - e // 2) / 4, (t, 1)), axis=1)
    order = rng.permutation(e)
    weights, experts = call(logits=logits[:, order], **options)
    return (weights, order[experts.astype(int)]), call(logits=logits, **options)


def common_shift(call: Call, arrays: Arrays, options: Mapping[str, Any], rng: np.random.Generator):
    """A softmax router does not see a constant added to all logits."""
    if options.get("scoring") == "sigmoid":
        return None
    logits = np.round(4 * arrays["logits"].astype(np.float64)) / 4
    return call(**{**arrays, "logits": logits}, **options), call(**{**arrays, "logits": logits + 8}, **options)


def scaled(call: Call, arrays: Arrays, options: Mapping[str, Any], rng: np.random.Generator):
    """Twice the scale, twice the weights."""
    if "scale" not in options:
        return None
    weights, experts = call(**arrays, **options)
    return (2 * weights, experts), call(**arrays, **{**options, "scale": 2 * options["scale"]})


ROUTE = Op(
    name="route",
    ref=route_ref,
    forms={"route": route},
    required=("logits",),
    outputs=("weights", "experts"),
    cases=CASES,
    draw=draw_route,
    styles={
        "ties": ties,
        "all equal": all_equal,
        "peaked": peaked,
        "far from zero": far_from_zero,
        "bias decides": bias_decides,
    },
    exact=exact_route,
    laws=(
        Law("experts have no order", renamed_experts),
        Law("softmax sees differences only", common_shift),
        Law("linear in the scale", scaled, exact=True),
    ),
    batched=("logits",),
    wide=("bias",),
)
