"""What every attention form is tried on: sizes and options, ordinary, nasty and exactly solvable inputs."""

from functools import partial

import numpy as np

from ..cases import Arrays, Case, Op
from .blocked import blocked_attention
from .laws import BY_KEY, LAWS, QUERIES, visibility, with_keys
from .look_ups import POWERS_OF_TWO, look_up_keys, look_up_queries
from .naive import naive_attention
from .ref import attention_ref
from .split import split_attention

SIZES = ("b", "t", "past", "g", "r", "k", "j")  # s = past + t keys, h = g r heads
POSITIONS = ("q_pos", "k_pos")
SEGMENTS = ("q_segment", "k_segment")


def new_case(letters: tuple[str, ...], name: str, sizes: str, inputs: tuple[str, ...] = (), **options) -> Case:
    """A case from sizes in the order of their letters: "2 17 0"."""
    return Case(name, dict(zip(letters, map(int, sizes.split()), strict=True)), options, inputs)


case = partial(new_case, SIZES)
CASES = (
    case("one token", "1 1 0 1 1 8 8"),
    case("one channel", "1 3 2 1 2 1 1"),
    case("square causal", "2 17 0 4 1 16 16"),
    case("grouped queries, narrow values", "2 9 0 2 3 8 6"),
    case("decode one query", "3 1 39 3 3 8 8"),
    case("not causal, scale", "1 7 6 2 1 8 8", causal=False, scale=0.8),
    case("window of one", "1 6 3 2 1 8 8", window=1),
    case("window", "2 9 11 2 2 8 8", window=4),
    case("window on both sides, multi-query", "1 8 5 1 4 16 16", causal=False, window=3),
    case("soft cap", "1 6 6 2 1 8 8", softcap=1.5),
    case("sinks", "2 4 8 2 2 8 8", ("sinks",), return_lse=True),
    case("alibi", "1 9 4 2 2 8 8", ("alibi",)),
    case("packed sequences", "2 12 0 2 1 8 8", SEGMENTS),
    case("ragged positions", "3 6 64 2 2 8 8", POSITIONS),
    case("ragged positions, not causal", "4 5 6 2 1 8 8", POSITIONS, causal=False),
    case("draft tree", "2 7 14 2 2 8 8", (*POSITIONS, "mask"), return_lse=True),
    case(
        "everything at once",
        "3 5 66 2 2 8 6",
        (*POSITIONS, *SEGMENTS, "mask", "sinks", "alibi"),
        window=9,
        softcap=2.0,
        scale=0.5,
        return_lse=True,
    ),
    case("64 channels", "2 9 8 2 2 64 64"),
    case("128 channels", "1 5 4 1 2 128 128"),
    case("62 keys", "1 62 0 1 1 4 4"),
    case("63 keys", "2 1 62 1 2 8 8"),
    case("64 keys", "1 64 0 1 1 4 4", window=33),
    case("65 keys", "2 1 64 1 2 8 8", window=100),
    case("66 keys", "1 66 0 1 1 4 4"),
    case("600 keys", "1 2 598 4 1 4 4"),
)


def draw(case: Case, rng: np.random.Generator) -> Arrays:
    """Normal q, k, v and sinks; slopes as in the paper; `draw_context` for the rest."""
    b, t, past, g, r, k, j = (case.sizes[letter] for letter in SIZES)
    s, h = past + t, g * r
    arrays: Arrays = {"q": rng.normal(size=(b, t, h, k))}
    arrays |= {"k": rng.normal(size=(b, s, g, k)), "v": rng.normal(size=(b, s, g, j))}
    if "sinks" in case.inputs:
        arrays["sinks"] = rng.normal(size=h)
    if "alibi" in case.inputs:
        arrays["alibi"] = 2.0 ** (-8 * np.arange(1, h + 1) / h)
    return scatter(arrays | draw_context(case, rng), rng)


def draw_context(case: Case, rng: np.random.Generator) -> Arrays:
    """Positions, mask and segments as far as the case has them, tokens in their order: `past` old ones, t new.

    A sequence has 0 … s tokens; the missing ones are the oldest. Positions skip a number now and then, as after an
    eviction. With a mask the new tokens form a draft tree, and some of them see nothing.
    """
    b, t, past = (case.sizes[letter] for letter in ("b", "t", "past"))
    kin = draw_tree(b, t, rng) if "mask" in case.inputs else np.tile(np.tri(t, dtype=bool), (b, 1, 1))
    context: Arrays = {}
    if "mask" in case.inputs:
        context["mask"] = np.concatenate([rng.random((b, t, past)) < 0.8, kin], axis=2)
        context["mask"][rng.random((b, t)) < 0.1] = False
    if "k_segment" in case.inputs:
        context["k_segment"] = np.cumsum(rng.random((b, past + t)) < 0.2, axis=1).astype(np.int32)
        context["q_segment"] = context["k_segment"][:, past:]
    if "k_pos" in case.inputs:
        old = np.cumsum(rng.integers(1, 3, (b, past)), axis=1)
        new = kin.sum(axis=2) + (old[:, -1:] if past else 0)  # depth in the tree, from 1
        token = np.arange(past + t) >= rng.integers(0, past + t + 1, (b, 1))
        context["k_pos"] = np.where(token, np.concatenate([old, new], axis=1), -1).astype(np.int32)
        context["q_pos"] = context["k_pos"][:, past:]
    return context


def draw_tree(b: int, t: int, rng: np.random.Generator) -> np.ndarray:
    """Bool [b t t]: token i's ancestors and itself, for a parent drawn among the tokens before it (or none)."""
    kin = np.tile(np.eye(t, dtype=bool), (b, 1, 1))
    for row, i in np.ndindex(b, t):
        parent = rng.integers(-1, i)
        if parent >= 0:
            kin[row, i] |= kin[row, parent]
    return kin


def scatter(arrays: Arrays, rng: np.random.Generator) -> Arrays:
    """If there are positions: keys to rows in any order, another one in each sequence; NaN where no token is."""
    if "k_pos" not in arrays:
        return arrays
    order = rng.permuted(np.tile(np.arange(arrays["k_pos"].shape[1]), (len(arrays["k_pos"]), 1)), axis=1)
    moved = {
        name: [np.take(x, o, BY_KEY[name] - 1) for x, o in zip(arrays[name], order, strict=True)]
        for name in arrays
        if name in BY_KEY
    }
    moved = arrays | {name: np.stack(rows) for name, rows in moved.items()}
    return with_keys(moved, moved["k_pos"] >= 0, np.nan)


def retrieval(case: Case, rng: np.random.Generator) -> Arrays | None:
    """Look-ups: a softmax that is exactly one-hot, or, with sinks of 0, halved. None if it cannot be."""
    if case.sizes["k"] == 1 or "softcap" in case.options:
        return None
    arrays = draw(case, rng)
    if "sinks" in arrays:
        arrays["sinks"] = np.zeros_like(arrays["sinks"])
    if "alibi" in arrays:
        arrays["alibi"] = np.zeros_like(arrays["alibi"])
    h, g = arrays["q"].shape[2], arrays["k"].shape[2]
    keys = look_up_keys(arrays["k"].shape, rng)
    arrays["q"] = look_up_queries(np.repeat(keys, h // g, axis=2), arrays, case.options, rng)
    arrays["k"] = np.where(np.isnan(arrays["k"]), np.nan, keys)
    arrays["v"] = np.where(np.isnan(arrays["v"]), np.nan, rng.choice(POWERS_OF_TWO, arrays["v"].shape))
    return arrays


def one_hot(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
    """Scores of some 1e4, one key far above the others: each query points along a key of its own choice."""
    norm = np.linalg.norm(arrays["k"], axis=3, keepdims=True)
    arrays = arrays | {"k": arrays["k"] / norm, "q": np.array(arrays["q"])}
    seen, _ = visibility(arrays, case.options)
    h, g, k = arrays["q"].shape[2], *arrays["k"].shape[2:]
    for row, time, head in np.ndindex(*arrays["q"].shape[:3]):
        keys = np.flatnonzero(seen[row, time])
        if len(keys):
            arrays["q"][row, time, head] = 1e4 * k**0.5 * arrays["k"][row, rng.choice(keys), head // (h // g)]
    return arrays


def far_below_zero(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
    """All scores share a summand of about -1e4, so that a peak that starts at 0 would hide them all.

    The other channels are whole quarters: their sums are exact in float32, whichever comes first.
    """
    q, k = (np.round(4 * arrays[name]) / 4 for name in ("q", "k"))
    q[..., 0], k[..., 0] = -1024, np.where(np.isnan(k[..., 0]), np.nan, 32)
    return arrays | {"q": q, "k": k}


def infinite_padding(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
    """Infinities of both signs where drawn inputs have NaN, and NaN in queries that are padding."""
    arrays = {
        n: np.where(np.isnan(x), rng.choice([np.inf, -np.inf], x.shape), x) if x.dtype == float else x
        for n, x in arrays.items()
    }
    for name in QUERIES:
        if name in arrays and "q_pos" in arrays:
            arrays[name][arrays["q_pos"] < 0] = np.nan
    return arrays


def outlier_channel(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
    """One channel of the keys is 32 times as large as the others, as in trained models, and q's as much smaller."""
    keys = "k" if "k" in arrays else "k_pages"
    k = arrays["q"].shape[3]
    factor = np.where(np.arange(k) == rng.integers(k), 32, 1)
    return arrays | {"q": arrays["q"] / factor, keys: arrays[keys] * factor}


STYLES = {
    "outlier channel": outlier_channel,
    "tiny scores": lambda arrays, case, rng: arrays | {"q": arrays["q"] * 2.0**-10},
    "one-hot": one_hot,
    "far below zero": far_below_zero,
    "equal keys": lambda arrays, case, rng: arrays | {"k": np.where(np.isnan(arrays["k"]), np.nan, 1.5)},
    "large values": lambda arrays, case, rng: arrays | {"v": arrays["v"] * 1e4},
    "subnormal values": lambda arrays, case, rng: arrays | {"v": arrays["v"] * 1e-39},
    "infinite padding": infinite_padding,
}

ATTENTION = Op(
    name="attention",
    ref=attention_ref,
    forms={
        "naive_attention": naive_attention,
        "blocked_attention": blocked_attention,
        "split_attention": split_attention,
    },
    required=("q", "k", "v"),
    outputs=("y", "lse"),
    cases=CASES,
    draw=draw,
    styles=STYLES,
    exact=retrieval,
    laws=LAWS,
    batched=("q", "k", "v", *POSITIONS, "mask", *SEGMENTS),
    wide=("sinks", "alibi"),
)
