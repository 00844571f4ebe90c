"""What every form of paged attention is tried on."""

from functools import partial

import numpy as np

from ..cases import Arrays, Call, Case, Law, Op
from .cases import infinite_padding, new_case, outlier_channel
from .laws import Options, Sides, repeated_heads, scale_of_queries
from .look_ups import POWERS_OF_TWO, look_up_keys, look_up_queries
from .paged import gathered_paged_attention, paged_attention
from .paged_ref import paged_attention_ref

SIZES = ("b", "t", "m", "o", "g", "r", "k", "j")  # a table of m pages a sequence, o rows a page, h = g r heads


case = partial(new_case, SIZES)
CASES = (
    case("one token", "1 1 1 1 1 1 8 8"),
    case("decode", "3 1 3 4 2 2 8 8"),
    case("pages of one row", "2 1 7 1 1 2 8 8"),
    case("pages of five rows, narrow values", "2 2 3 5 2 1 8 6"),
    case("verify a draft", "3 4 3 8 1 4 16 16"),
    case("prefill", "1 17 3 8 2 2 8 8"),
    case("not causal", "2 3 2 8 2 1 8 8", causal=False),
    case("window", "3 3 4 4 1 2 8 8", window=5),
    case("window of one on both sides", "2 3 3 4 1 2 8 8", causal=False, window=1),
    case("soft cap and scale", "2 2 3 4 2 1 8 8", softcap=1.5, scale=0.5),
    case("sinks", "3 2 3 4 2 2 8 8", ("sinks",), return_lse=True),
    case("640 tokens", "2 1 40 16 4 1 4 4", return_lse=True),
)


def draw(case: Case, rng: np.random.Generator) -> Arrays:
    """Normal queries and tokens; sequences 0 and 1 share their first page if both fill it."""
    arrays = lay_out(*draw_tokens(case, rng), case.sizes["o"], rng)
    pages, full = arrays["pages"], arrays["lengths"] >= case.sizes["o"]
    if len(full) > 1 and full[:2].all():
        pages[1, 0] = pages[0, 0]
    if "sinks" in case.inputs:
        arrays["sinks"] = rng.normal(size=arrays["q"].shape[2])
    return arrays


def draw_tokens(case: Case, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """q [b t h k], tokens k [b s g k] and v [b s g j], lengths [b] of 0 … s = m o; the first needs all pages."""
    b, t, m, o, g, r, k, j = (case.sizes[letter] for letter in SIZES)
    lengths = rng.integers(0, m * o + 1, b).astype(np.int32)
    lengths[0] = m * o - rng.integers(o)
    q, keys = rng.normal(size=(b, t, g * r, k)), rng.normal(size=(b, m * o, g, k))
    return q, keys, rng.normal(size=(b, m * o, g, j)), lengths


def lay_out(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, lengths: np.ndarray, o: int, rng: np.random.Generator
) -> Arrays:
    """Tokens to pages of o rows in any order, NaN where there are none; two pages are nobody's.

    Entries of the table past a sequence's end are stale: they name pages that hold none of its tokens.
    """
    (b, s), p = k.shape[:2], k.shape[0] * k.shape[1] // o + 2
    pages = rng.permutation(p)[: p - 2].reshape(b, -1).astype(np.int32)
    k_pages, v_pages = (np.full((p, o, *x.shape[2:]), np.nan) for x in (k, v))
    for row, i in np.ndindex(b, s):
        if i < lengths[row]:
            place = pages[row, i // o], i % o
            k_pages[place], v_pages[place] = k[row, i], v[row, i]
    return {"q": q, "k_pages": k_pages, "v_pages": v_pages, "pages": pages, "lengths": lengths}


def retrieval(case: Case, rng: np.random.Generator) -> Arrays | None:
    """Look-ups, as in `cases.py`, with the keys in pages."""
    if case.sizes["k"] == 1 or "softcap" in case.options:
        return None
    q, k, v, lengths = draw_tokens(case, rng)
    t, h, s = q.shape[1], q.shape[2], k.shape[1]
    rows = {"q": q, "k": k, "q_pos": (lengths[:, None] - t + np.arange(t)).astype(np.int32)}
    rows["k_pos"] = np.where(np.arange(s) < lengths[:, None], np.arange(s), -1).astype(np.int32)
    k = look_up_keys(k.shape, rng)
    q = look_up_queries(np.repeat(k, h // k.shape[2], axis=2), rows, case.options, rng)
    v = rng.choice(POWERS_OF_TWO, v.shape)
    sinks = {name: np.zeros(h) for name in case.inputs}
    return lay_out(q, k, v, lengths, case.sizes["o"], rng) | sinks


def used(arrays: Arrays) -> np.ndarray:
    """Bool [b m]: which entries of the table name a page with tokens in it."""
    o = arrays["k_pages"].shape[1]
    return np.arange(arrays["pages"].shape[1]) * o < arrays["lengths"][:, None]


def garbage_in_table(arrays: Arrays, case: Case, rng: np.random.Generator) -> Arrays:
    """Entries of the table that are not needed hold no page's number."""
    garbage = rng.choice([-(2**31), -1, len(arrays["k_pages"]), 2**31 - 1], arrays["pages"].shape)
    return arrays | {"pages": np.where(used(arrays), arrays["pages"], garbage).astype(np.int32)}


STYLES = {
    "outlier channel": outlier_channel,
    "tiny scores": lambda arrays, case, rng: arrays | {"q": arrays["q"] * 2.0**-10},
    "large values": lambda arrays, case, rng: arrays | {"v_pages": arrays["v_pages"] * 1e4},
    "infinite padding": infinite_padding,
    "garbage in the table": garbage_in_table,
}


def names_of_pages(call: Call, arrays: Arrays, options: Options, rng: np.random.Generator) -> Sides:
    """Which page holds what does not matter, as long as the table says so."""
    name = rng.permutation(len(arrays["k_pages"])).astype(np.int32)  # page i moves to place name[i]
    moved = {pool: arrays[pool][np.argsort(name)] for pool in ("k_pages", "v_pages")}
    return call(**arrays, **options), call(**(arrays | moved | {"pages": name[arrays["pages"]]}), **options)


def unused_pages(call: Call, arrays: Arrays, options: Options, rng: np.random.Generator) -> Sides:
    """What is past the end, rows and entries of the table, changes nothing."""
    zeros = {pool: np.nan_to_num(arrays[pool]) for pool in ("k_pages", "v_pages")}
    zeros["pages"] = np.where(used(arrays), arrays["pages"], 0).astype(np.int32)
    return call(**arrays, **options), call(**(arrays | zeros), **options)


def half_pages(call: Call, arrays: Arrays, options: Options, rng: np.random.Generator) -> Sides:
    """Pages of half the size, twice as many, hold the same tokens."""
    (p, o), (b, m) = arrays["k_pages"].shape[:2], arrays["pages"].shape
    if o % 2:
        return None
    halved = {pool: arrays[pool].reshape(2 * p, o // 2, *arrays[pool].shape[2:]) for pool in ("k_pages", "v_pages")}
    pages = (2 * arrays["pages"][:, :, None] + np.arange(2, dtype=np.int32)).reshape(b, 2 * m)
    return call(**arrays, **options), call(**(arrays | halved | {"pages": pages}), **options)


def alone(call: Call, arrays: Arrays, options: Options, rng: np.random.Generator) -> Sides:
    """A query among others gets what it got when it was the last: prefill is decoding, step by step."""
    t = arrays["q"].shape[1]
    one = int(rng.integers(t))
    if t == 1 or not options.get("causal", True):
        return None
    then = {"q": arrays["q"][:, one : one + 1], "lengths": np.maximum(arrays["lengths"] - (t - 1 - one), 0)}
    whole = call(**arrays, **options)
    return tuple(x[:, one : one + 1] for x in whole), call(**(arrays | then), **options)


PAGED_ATTENTION = Op(
    name="paged_attention",
    ref=paged_attention_ref,
    forms={"gathered_paged_attention": gathered_paged_attention, "paged_attention": paged_attention},
    required=("q", "k_pages", "v_pages", "pages", "lengths"),
    outputs=("y", "lse"),
    cases=CASES,
    draw=draw,
    styles=STYLES,
    exact=retrieval,
    laws=(
        Law("numbers of pages are only names", names_of_pages, exact=True),
        Law("rows and entries past the end may hold anything", unused_pages, exact=True),
        Law("the size of a page does not matter", half_pages),
        Law("a query alone gets what it gets among others", alone),
        Law("grouped queries read what repeated heads would", repeated_heads),
        Law("only the product of scale and queries counts", scale_of_queries),
    ),
    batched=("q", "pages", "lengths"),
    wide=("sinks",),
)
