"""What every form of multi-head latent attention is tried on."""

from functools import partial

import numpy as np

from ..cases import Arrays, Call, Case, Law, Op
from .cases import POSITIONS, draw_context, infinite_padding, new_case, scatter
from .laws import ANY_ATTENTION, Options, Sides
from .look_ups import POWERS_OF_TWO, look_up_keys, look_up_queries
from .mla import absorbed_mla_attention, expanded_mla_attention
from .mla_ref import mla_attention_ref

SIZES = ("b", "t", "past", "h", "k", "a", "l", "j")  # s = past + t tokens; a rotated channels
QUERIES, KEYS = ("q_nope", "q_rope"), ("latent", "k_rope")


case = partial(new_case, SIZES)
CASES = (
    case("one token", "1 1 0 1 1 1 1 1"),
    case("causal", "2 9 0 2 8 4 16 8"),
    case("decode", "3 1 20 4 8 4 24 8"),
    case("latent narrower than a head, one rotated channel", "1 5 4 3 5 1 3 5"),
    case("wide values", "1 4 7 2 3 2 12 11"),
    case("not causal", "1 5 4 2 6 2 12 6", causal=False),
    case("scale and log-sum-exp", "2 3 6 2 8 4 16 8", scale=0.5, return_lse=True),
    case("ragged positions", "3 4 9 2 8 4 16 8", POSITIONS),
    case("draft tree", "2 6 5 2 8 4 16 8", (*POSITIONS, "mask"), return_lse=True),
    case("65 tokens", "1 2 63 2 4 4 8 4"),
    case("600 tokens", "1 2 598 2 3 1 6 3"),
)


def draw(case: Case, rng: np.random.Generator) -> Arrays:
    """Queries, latents and keys are whole quarters, about normal; a map adds or subtracts two latent channels.

    Keys, values and absorbed queries are then exact even in bfloat16. How much is lost in rounding those depends on
    which of them an algorithm builds, which would leave no common measure for expanded and absorbed kernels.
    """
    b, t, past, h, k, a, l, j = (case.sizes[letter] for letter in SIZES)
    shapes = {
        "q_nope": (b, t, h, k),
        "q_rope": (b, t, h, a),
        "latent": (b, past + t, l),
        "k_rope": (b, past + t, a),
    }
    arrays = {name: np.round(4 * rng.normal(size=shape)) / 4 for name, shape in shapes.items()}
    for name, width in (("w_uk", k), ("w_uv", j)):
        arrays[name] = np.zeros((h, width, l))
        for head, i in np.ndindex(h, width):
            arrays[name][head, i, rng.permutation(l)[:2]] = rng.choice([-1, 1], min(l, 2))
    return scatter(arrays | draw_context(case, rng), rng)


def retrieval(case: Case, rng: np.random.Generator) -> Arrays | None:
    """Look-ups, as in `cases.py`: half the latent's channels are matched, the others read.

    Each channel of a head's keys and values is one channel of the latent, so that both maps are exact, too.
    """
    h, k, a, l, j = (case.sizes[letter] for letter in ("h", "k", "a", "l", "j"))
    matched = l // 2
    if matched + a == 1:  # too narrow to tell keys apart
        return None
    arrays = draw(case, rng)
    b, s = arrays["latent"].shape[:2]
    numbers = look_up_keys((b, s, 1, matched + a), rng)[:, :, 0]
    values = rng.choice(POWERS_OF_TWO, (b, s, l - matched))
    rows = {"latent": np.concatenate([numbers[..., :matched], values], axis=2), "k_rope": numbers[..., matched:]}
    w_uk, w_uv = np.zeros((h, k, l)), np.zeros((h, j, l))
    for head, i in np.ndindex(h, k if matched else 0):
        w_uk[head, i, rng.integers(matched)] = 1
    for head, i in np.ndindex(h, j):
        w_uv[head, i, rng.integers(matched, l)] = rng.choice([-1, 1])
    k_nope = np.einsum("bsl,hkl->bshk", rows["latent"], w_uk)
    k_rope = np.repeat(rows["k_rope"][:, :, None], h, axis=2)
    q = look_up_queries(np.concatenate([k_nope, k_rope], axis=3), arrays, case.options, rng)
    rows = {name: np.where(np.isnan(arrays[name]), np.nan, x) for name, x in rows.items()}
    return arrays | rows | {"q_nope": q[..., :k], "q_rope": q[..., k:], "w_uk": w_uk, "w_uv": w_uv}


def outlier_channel(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
    """One channel of the latent is 32 times as large as the others, its columns of the maps so much smaller."""
    l = case.sizes["l"]
    factor = np.where(np.arange(l) == rng.integers(l), 32, 1)
    return arrays | {"latent": arrays["latent"] * factor} | {n: arrays[n] / factor for n in ("w_uk", "w_uv")}


STYLES = {
    "outlier channel": outlier_channel,
    "tiny scores": lambda arrays, case, rng: arrays | {name: arrays[name] * 2.0**-10 for name in QUERIES},
    "large values": lambda arrays, case, rng: arrays | {"w_uv": arrays["w_uv"] * 2.0**10},
    "infinite padding": infinite_padding,
}


def basis_of_latent(call: Call, arrays: Arrays, options: Options, rng: np.random.Generator) -> Sides:
    """Only the products of latent and maps count; powers of two move between them without rounding."""
    factor = rng.choice([-2.0, 0.5, 4.0], arrays["latent"].shape[2])
    maps = {name: arrays[name] / factor for name in ("w_uk", "w_uv")}
    return call(**arrays, **options), call(**(arrays | maps | {"latent": arrays["latent"] * factor}), **options)


def one_head(call: Call, arrays: Arrays, options: Options, rng: np.random.Generator) -> Sides:
    """Heads share the latent and nothing else."""
    head = slice(h := int(rng.integers(len(arrays["w_uk"]))), h + 1)
    alone = {name: arrays[name][:, :, head] for name in QUERIES} | {n: arrays[n][head] for n in ("w_uk", "w_uv")}
    whole = call(**arrays, **options)
    return tuple(x[:, :, head] for x in whole), call(**(arrays | alone), **options)


MLA = Op(
    name="mla",
    ref=mla_attention_ref,
    forms={"absorbed_mla_attention": absorbed_mla_attention, "expanded_mla_attention": expanded_mla_attention},
    required=("q_nope", "q_rope", "latent", "k_rope", "w_uk", "w_uv"),
    outputs=("y", "lse"),
    cases=CASES,
    draw=draw,
    styles=STYLES,
    exact=retrieval,
    laws=(
        *ANY_ATTENTION,
        Law("only the products of latent and maps count", basis_of_latent, exact=True),
        Law("heads share the latent and nothing else", one_head),
    ),
    batched=(*QUERIES, *KEYS, *POSITIONS, "mask"),
)
