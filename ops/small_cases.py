"""What the ops outside folders are tried on: norms (`norm_cases.py`), RoPE, activations, cross-entropy."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from . import activations
from .cases import Arrays, Call, Case, Law, Op
from .cross_entropy import blocked_cross_entropy, cross_entropy, cross_entropy_ref
from .norm_cases import NORMS, leading, new_case, outlier_channel, scaled
from .rope import apply_rope, apply_rope_ref, rope_frequencies

HALF, INTERLEAVED = {"layout": "half"}, {"layout": "interleaved"}
# j pairs turn; channels beyond them (u) are copied; s is the position of the last token.
ROPE_CASES = (
    new_case("one pair", HALF, b=1, t=1, h=1, j=1, u=0, s=1),
    new_case("interleaved", INTERLEAVED, b=2, t=5, h=3, j=4, u=0, s=5),
    new_case("half", HALF, b=2, t=5, h=3, j=4, u=0, s=5),
    new_case("partial, interleaved", INTERLEAVED, b=1, t=4, h=2, j=3, u=10, s=100),
    new_case("partial, half", HALF, b=1, t=4, h=2, j=3, u=10, s=100),
    new_case("odd rest", HALF, b=2, t=3, h=1, j=2, u=1, s=511),
    new_case("decode past 512", HALF, b=3, t=1, h=4, j=32, u=0, s=513),
    new_case("decode past 512, interleaved", INTERLEAVED, b=3, t=1, h=4, j=32, u=0, s=513),
    new_case("far", HALF, b=1, t=7, h=2, j=64, u=0, s=8192),
    new_case("very far", INTERLEAVED, b=1, t=7, h=2, j=8, u=0, s=131072),
    new_case("many positions", HALF, b=1, t=600, h=1, j=4, u=0, s=600),
)


def draw_rope(case: Case, rng: np.random.Generator) -> Arrays:
    """Consecutive positions up to s, each row of the batch somewhat earlier; usual frequencies."""
    b, t, h, j, u, s = (case.sizes[letter] for letter in "bthjus")
    pos = np.maximum(np.arange(s - t, s) - rng.integers(0, 3, (b, 1)), 0)
    return {
        "x": rng.normal(size=(b, t, h, 2 * j + u)),
        "pos": pos.astype(np.int32),
        "freqs": rope_frequencies(2 * j, 1e4).astype(np.float64),
    }


def shuffled_positions(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
    """Positions in no order, with gaps: a row's index says nothing."""
    return {**arrays, "pos": rng.integers(0, case.sizes["s"] + 1, arrays["pos"].shape).astype(np.int32)}


def exact_rope(case: Case, rng: np.random.Generator) -> Arrays:
    """Position 0, or frequency 0, turns nothing."""
    arrays = draw_rope(case, rng)
    still = {"pos": np.zeros_like(arrays["pos"])} if rng.random() < 0.5 else {"freqs": np.zeros(case.sizes["j"])}
    return {**arrays, "x": rng.integers(-8, 9, arrays["x"].shape).astype(float), **still}


def heads_apart(call: Call, arrays: Arrays, options: Mapping[str, Any], rng: np.random.Generator):
    """Each head is turned as if it were alone."""
    return (call(**arrays, **options)[0][:, :, :1],), call(**{**arrays, "x": arrays["x"][:, :, :1]}, **options)


def tokens_apart(call: Call, arrays: Arrays, options: Mapping[str, Any], rng: np.random.Generator):
    """Only its position counts, not the row a token stands in."""
    order = rng.permutation(arrays["pos"].shape[1])
    (y,) = call(**arrays, **options)
    return (y[:, order],), call(**{**arrays, **{name: arrays[name][:, order] for name in ("x", "pos")}}, **options)


ROPE = Op(
    name="rope",
    ref=apply_rope_ref,
    forms={"apply_rope": apply_rope},
    required=("x", "pos", "freqs"),
    outputs=("y",),
    cases=ROPE_CASES,
    draw=draw_rope,
    styles={"shuffled positions": shuffled_positions, "outlier channel": outlier_channel},
    exact=exact_rope,
    laws=(Law("heads are apart", heads_apart), Law("rows are not positions", tokens_apart)),
    batched=("x", "pos"),
    wide=("freqs",),
)

ACTIVATION_CASES = (
    new_case("one number", t=1, f=1),
    new_case("two", t=1, f=2),
    new_case("odd", t=3, f=7),
    new_case("127", t=2, f=127),
    new_case("batch", b=2, t=3, f=64),
    new_case("129", t=5, f=129),
    new_case("1025", t=1, f=1025),
    new_case("many rows", t=600, f=3),
)


def activation_op(name: str, *arguments: str, cases: tuple[Case, ...] = ACTIVATION_CASES) -> Op:
    """An op on arrays [... f], element by element."""

    def draw(case: Case, rng: np.random.Generator) -> Arrays:
        """The first number is at least 1: were all in a tail, float32 rounding of 1 + erf would have no measure."""
        arrays = {one: 3 * rng.normal(size=leading(case, "f")) for one in arguments}
        for x in arrays.values():
            x.flat[0] = 1 + abs(x.flat[0])
        return arrays

    def far_out(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
        """Where the curves have become straight lines, on both sides."""
        return {one: 30 * x for one, x in arrays.items()}

    def near_zero(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
        """Where x matters more than x^2."""
        return {one: x / 256 for one, x in arrays.items()}

    def exact(case: Case, rng: np.random.Generator) -> Arrays:
        """Gates where e^-x vanishes beside 1 in float64 too, or e^x altogether."""
        gate = rng.choice([-1024.0, 0, 64], leading(case, "f"))
        return {one: rng.integers(-3, 4, gate.shape).astype(float) if one == "up" else gate for one in arguments}

    return Op(
        name=name,
        ref=getattr(activations, f"{name}_ref"),
        forms={name: getattr(activations, name)},
        required=arguments,
        outputs=("y",),
        cases=cases,
        draw=draw,
        styles={"far out": far_out, "near zero": near_zero},
        exact=exact,
        batched=arguments,
    )


CLAMPED_CASES = (*ACTIVATION_CASES, new_case("another limit", {"limit": 2.5}, t=3, f=33))

CROSS_ENTROPY_CASES = (
    new_case("one token of one", t=1, v=1),
    new_case("one token of two", t=1, v=2),
    new_case("batch", b=2, t=3, v=33),
    new_case("many tokens", t=513, v=7),
    new_case("1000", t=4, v=1000),
    new_case("a block less one", t=2, v=4095),
    new_case("a block", t=2, v=4096),
    new_case("a block and one", b=1, t=2, v=4097),
    new_case("three blocks", t=3, v=8200),
)


def draw_cross_entropy(case: Case, rng: np.random.Generator) -> Arrays:
    """Usual logits; a fifth of the targets is not scored."""
    shape, v = leading(case, "v"), case.sizes["v"]
    unscored = rng.random(shape[:-1]) < 0.2
    targets = np.where(unscored, rng.choice([-1, -100], shape[:-1]), rng.integers(v, size=shape[:-1]))
    return {"logits": 3 * rng.normal(size=shape), "targets": targets.astype(np.int32)}


def forbidden_half(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
    """The first half of the vocabulary is impossible, and never the target."""
    half, targets = case.sizes["v"] // 2, arrays["targets"]
    logits = arrays["logits"].copy()
    logits[..., :half] = -np.inf
    return {"logits": logits, "targets": np.where(targets < 0, targets, np.maximum(targets, half)).astype(np.int32)}


def certain(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
    """The target has nearly all the mass."""
    hit = np.arange(case.sizes["v"]) == arrays["targets"][..., None]
    return {**arrays, "logits": arrays["logits"] + 40 * hit}


def rising(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
    """The largest logit comes last: every block raises the maximum, from far below."""
    return {**arrays, "logits": np.sort(16 * arrays["logits"], axis=-1)}


def exact_cross_entropy(case: Case, rng: np.random.Generator) -> Arrays:
    """One logit stands 1024 above the others: the loss is 0 or 1024."""
    arrays = draw_cross_entropy(case, rng)
    peak = rng.integers(case.sizes["v"], size=arrays["targets"].shape)[..., None]
    logits = np.where(np.arange(case.sizes["v"]) == peak, 0.0, -1024.0)
    return {**arrays, "logits": logits + rng.choice([-512, 0, 256], peak.shape)}


def unscored_cost_nothing(call: Call, arrays: Arrays, options: Mapping[str, Any], rng: np.random.Generator):
    """Not scoring a token takes its loss away and changes no other."""
    ignored = rng.random(arrays["targets"].shape) < 0.5
    (y,) = call(**arrays, **options)
    return (np.where(ignored, 0, y),), call(
        **{**arrays, "targets": np.where(ignored, -1, arrays["targets"])}, **options
    )


CROSS_ENTROPY = Op(
    name="cross_entropy",
    ref=cross_entropy_ref,
    forms={"cross_entropy": cross_entropy, "blocked_cross_entropy": blocked_cross_entropy},
    required=("logits", "targets"),
    outputs=("nll",),
    cases=CROSS_ENTROPY_CASES,
    draw=draw_cross_entropy,
    styles={
        "forbidden half": forbidden_half,
        "certain": certain,
        "rising": rising,
        "large": scaled("logits", 64.0),
    },
    exact=exact_cross_entropy,
    laws=(Law("unscored tokens cost nothing", unscored_cost_nothing, exact=True),),
    batched=("logits", "targets"),
)

OPS = (
    *NORMS,
    ROPE,
    *(activation_op(name, "x") for name in ("silu", "gelu", "gelu_tanh", "relu2", "softplus")),
    activation_op("swiglu", "gate", "up"),
    activation_op("clamped_swiglu", "gate", "up", cases=CLAMPED_CASES),
    CROSS_ENTROPY,
)
