"""What any attention obeys, whatever its algorithm: pairs of calls whose results must agree.

They hold for attention and for latent attention alike, so they speak of "what comes by the key" and "by the
query"; paged attention, whose keys have no axis of their own, shares two of them.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..cases import Arrays, Call, Law
from .ref import positions_ref, visible_ref

BY_KEY = {"k": 1, "v": 1, "latent": 1, "k_rope": 1, "k_pos": 1, "k_segment": 1, "mask": 2}  # and which axis that is
BY_QUERY = {"q": 1, "q_nope": 1, "q_rope": 1, "q_pos": 1, "q_segment": 1, "mask": 1}
KEYS, QUERIES = ("k", "v", "latent", "k_rope"), ("q", "q_nope", "q_rope")

Options = Mapping[str, Any]
Sides = tuple[tuple, tuple] | None


def order_of_rows(call: Call, arrays: Arrays, options: Options, rng: np.random.Generator) -> Sides:
    """Where a key lies in memory does not matter, only its position."""
    placed = with_positions(arrays) if default_positions_matter(arrays, options) else arrays
    order = rng.permutation(sizes(arrays)[2])
    return call(**placed, **options), call(**take(placed, BY_KEY, order), **options)


def parts_merge(call: Call, arrays: Arrays, options: Options, rng: np.random.Generator) -> Sides:
    """Two halves of the keys merge by their log-sum-exp into the whole; sinks are a third part without a value."""
    _, t, s = sizes(arrays)
    if s < 2:
        return None
    options = {**options, "return_lse": True}
    if default_positions_matter(arrays, options) or t > s // 2:
        arrays = with_positions(arrays)
    whole = call(**arrays, **options)
    rest = {name: x for name, x in arrays.items() if name != "sinks"}
    parts = [call(**take(rest, BY_KEY, half), **options) for half in np.split(np.arange(s), [s // 2])]
    if "sinks" in arrays:
        parts.append((np.zeros_like(whole[0]), np.broadcast_to(arrays["sinks"], whole[1].shape)))
    with np.errstate(invalid="ignore"):  # a wrong kernel's NaN
        lse = np.logaddexp.reduce([part[1] for part in parts])
        weights = [np.exp(part[1] - np.where(lse == -np.inf, 0, lse)) for part in parts]
        return whole, (sum(w[..., None] * part[0] for w, part in zip(weights, parts, strict=True)), lse)


def repeated_heads(call: Call, arrays: Arrays, options: Options, rng: np.random.Generator) -> Sides:
    """Query heads that share a KV head read what a copy each would give them."""
    shared = {name: x for name, x in arrays.items() if name in ("k", "v", "k_pages", "v_pages")}
    (g,) = {x.shape[2] for x in shared.values()}
    r = arrays["q"].shape[2] // g
    copies = {name: np.repeat(x, r, axis=2) for name, x in shared.items()}
    return (call(**arrays, **options), call(**(arrays | copies), **options)) if r > 1 else None


def scale_of_queries(call: Call, arrays: Arrays, options: Options, rng: np.random.Generator) -> Sides:
    """Only the product of scale and queries counts. (Not to the bit: compilers treat a scale of 1 specially.)"""
    queries = {name: arrays[name] for name in QUERIES if name in arrays}
    scale = options.get("scale", sum(q.shape[3] for q in queries.values()) ** -0.5)
    larger = arrays | {name: 4 * q for name, q in queries.items()}
    return call(**arrays, **{**options, "scale": scale}), call(**larger, **{**options, "scale": scale / 4})


def unseen_keys(call: Call, arrays: Arrays, options: Options, rng: np.random.Generator) -> Sides:
    """What a query does not see (the future, out of its window, other segments) changes nothing for it."""
    one = int(rng.integers(sizes(arrays)[1]))
    seen = visibility(arrays, options)[0][:, one]  # b s
    if seen.all():
        return None
    before, after = call(**arrays, **options), call(**with_keys(arrays, seen, 9), **options)
    return tuple(x[:, one] for x in before), tuple(x[:, one] for x in after)


def unwritten_rows(call: Call, arrays: Arrays, options: Options, rng: np.random.Generator) -> Sides:
    """Rows that hold no token may hold anything, NaN too."""
    if "k_pos" not in arrays or (arrays["k_pos"] >= 0).all():
        return None
    zeros, poison = (with_keys(arrays, arrays["k_pos"] >= 0, x) for x in (0, np.nan))
    return call(**zeros, **options), call(**poison, **options)


def alone(call: Call, arrays: Arrays, options: Options, rng: np.random.Generator) -> Sides:
    """A query among others gets what it gets alone: prefill is decoding, step by step."""
    _, t, s = sizes(arrays)
    one, causal = int(rng.integers(t)), options.get("causal", True)
    if t == 1 or (not causal and default_positions_matter(arrays, options)):
        return None
    step = take(arrays, BY_QUERY, np.array([one]))
    if causal and "q_pos" not in arrays:  # the keys then end where the query stands
        step = take(step, BY_KEY, np.arange(s - t + one + 1))
    whole = call(**arrays, **options)
    return tuple(x[:, one : one + 1] for x in whole), call(**step, **options)


def wide_window(call: Call, arrays: Arrays, options: Options, rng: np.random.Generator) -> Sides:
    """A window that just reaches everything is none."""
    if options.get("window") is not None:
        return None
    reach = 1 + max(int(x.max()) for x in with_positions(arrays).values() if x.dtype == np.int32)
    return call(**arrays, **options), call(**arrays, **{**options, "window": reach})


def moved_positions(call: Call, arrays: Arrays, options: Options, rng: np.random.Generator) -> Sides:
    """Only differences of positions count."""
    if "k_pos" not in arrays:
        return None
    moved = {n: np.where(arrays[n] < 0, -1, arrays[n] + 1000).astype(np.int32) for n in ("q_pos", "k_pos")}
    return call(**arrays, **options), call(**(arrays | moved), **options)


def names_of_segments(call: Call, arrays: Arrays, options: Options, rng: np.random.Generator) -> Sides:
    """Segments are told apart, no more: any other numbers do as well."""
    if "k_segment" not in arrays:
        return None
    name = rng.permutation(int(arrays["k_segment"].max()) + 1).astype(np.int32) + 5
    renamed = {side: name[arrays[side]] for side in ("q_segment", "k_segment")}
    return call(**arrays, **options), call(**(arrays | renamed), **options)


def common_channel(call: Call, arrays: Arrays, options: Options, rng: np.random.Generator) -> Sides:
    """What all keys have in common shifts a query's scores alike, and a softmax does not see it."""
    if "sinks" in arrays or options.get("softcap") is not None:
        return None
    zero, one = np.array(arrays["k"]), np.array(arrays["k"])
    zero[..., 0], one[..., 0] = 0, 1
    (y0, *_), (y1, *_) = (call(**(arrays | {"k": k}), **options) for k in (zero, one))
    return (y0,), (y1,)


def sizes(arrays: Arrays) -> tuple[int, int, int]:
    """(b, t, s)."""
    (q, *_), (k, *_) = ([arrays[n] for n in names if n in arrays] for names in (QUERIES, KEYS))
    return q.shape[0], q.shape[1], k.shape[1]


def take(arrays: Arrays, axes: Mapping[str, int], index: np.ndarray) -> Arrays:
    """The arrays with `index` taken along their axis in `axes`, if they have one."""
    return {name: np.take(x, index, axes[name]) if name in axes else x for name, x in arrays.items()}


def with_keys(arrays: Arrays, keep: np.ndarray, other: float) -> Arrays:
    """The arrays with `other` in all rows of keys and values but those to keep [b s]."""
    rows = {name: x for name, x in arrays.items() if name in KEYS}
    return arrays | {n: np.where(keep.reshape(*keep.shape, *[1] * (x.ndim - 2)), x, other) for n, x in rows.items()}


def default_positions_matter(arrays: Arrays, options: Options) -> bool:
    """Whether positions are left out, though something depends on them."""
    order = options.get("causal", True) and sizes(arrays)[1] > 1
    return "k_pos" not in arrays and (order or options.get("window") is not None or "alibi" in arrays)


def with_positions(arrays: Arrays) -> Arrays:
    """The arrays with the positions spelled out."""
    q_pos, k_pos = positions_ref(sizes(arrays), arrays.get("q_pos"), arrays.get("k_pos"))
    return arrays | {"q_pos": q_pos.astype(np.int32), "k_pos": k_pos.astype(np.int32)}


def visibility(arrays: Arrays, options: Options) -> tuple[np.ndarray, np.ndarray]:
    """For every query and key: bool [b t s] whether it is seen, and int [b t s] how far ahead it stands."""
    placed = with_positions(arrays)
    rules = {name: options[name] for name in ("causal", "window") if name in options}
    rules |= {name: arrays[name] for name in ("mask", "q_segment", "k_segment") if name in arrays}
    seen = visible_ref(placed["q_pos"], placed["k_pos"], **rules)
    return seen, placed["k_pos"][:, None, :] - placed["q_pos"][:, :, None]


ANY_ATTENTION = (
    Law("the order of rows in memory does not matter", order_of_rows),
    Law("two halves of the keys merge into the whole", parts_merge),
    Law("only the product of scale and queries counts", scale_of_queries),
    Law("keys that a query does not see change nothing for it", unseen_keys, exact=True),
    Law("rows without a token may hold anything", unwritten_rows, exact=True),
    Law("a query alone gets what it gets among others", alone),
    Law("only differences of positions count", moved_positions, exact=True),
)
LAWS = (
    *ANY_ATTENTION,
    Law("grouped queries read what repeated heads would", repeated_heads),
    Law("a window that reaches everything is none", wide_window),
    Law("numbers of segments are only names", names_of_segments, exact=True),
    Law("what all keys have in common does not matter", common_channel),
)
