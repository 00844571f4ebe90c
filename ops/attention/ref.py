"""Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762, eq. 1), the definition.

    y_t = sum_s softmax_s(score(t, s)) v_s                              over the keys s that query t sees
    score(t, s) = cap(scale * q_t . k_s) - slope_h * |q_pos_t - k_pos_s|

    grouped queries  Ainslie et al. 2023, arXiv:2305.13245  query head h reads KV head h // (h_total / g_total)
    window           Beltagy et al. 2020, arXiv:2004.05150  the last `window` positions, the query's own included
    softcap          Gemma 2, arXiv:2408.00118              cap(x) = softcap * tanh(x / softcap)
    alibi            Press et al. 2021, arXiv:2108.12409    a slope for each head, in place of rotations
    sinks            gpt-oss, arXiv:2508.10925              a logit for each head that joins the softmax's
                                                            denominator and brings no value

Query t sees key s if both are tokens (q_pos >= 0, k_pos >= 0), `mask` allows it, they belong to one segment,
and k_pos <= q_pos when causal, and |q_pos - k_pos| < window if there is one. A query that sees nothing gets
y = 0. lse is the log of the softmax's denominator, sink included: -inf where there is nothing in it.
"""

import numpy as np


def attention_ref(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    q_pos: np.ndarray | None = None,
    k_pos: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    q_segment: np.ndarray | None = None,
    k_segment: np.ndarray | None = None,
    sinks: np.ndarray | None = None,
    alibi: np.ndarray | None = None,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """The definition: q [b t h k], k [b s g k], v [b s g j] -> float64 y [b t h j], and lse [b t h] on request.

    `q_pos` [b t] and `k_pos` [b s] are absolute positions, negative for padding; by default keys stand at
    0 … s-1 and queries are the last t of them. `mask` [b t s] is True where a query may look (a draft tree, for
    one). `q_segment` [b t] and `k_segment` [b s] number the sequences packed into a row. `sinks` and the slopes
    `alibi` are [h]. `scale` is 1/sqrt(k) by default.
    """
    (batch, times, heads, width), (keys, groups) = q.shape, k.shape[1:3]
    q, k, v = (np.asarray(array, np.float64) for array in (q, k, v))
    q_pos, k_pos = positions_ref((batch, times, keys), q_pos, k_pos)
    seen = visible_ref(q_pos, k_pos, mask, q_segment, k_segment, causal, window)
    factor = width**-0.5 if scale is None else scale

    def score(b: int, t: int, h: int, s: int) -> float:
        x = factor * sum(q[b, t, h] * k[b, s, h // (heads // groups)])
        x = x if softcap is None else softcap * np.tanh(x / softcap)
        return x if alibi is None else x - float(alibi[h]) * abs(int(q_pos[b, t]) - int(k_pos[b, s]))

    y, lse = np.zeros((batch, times, heads, v.shape[3])), np.full((batch, times, heads), -np.inf)
    for b, t, h in np.ndindex(batch, times, heads):
        keys_seen = np.flatnonzero(seen[b, t]).tolist()
        scores = [score(b, t, h, s) for s in keys_seen]
        sink = -np.inf if sinks is None else float(sinks[h])
        y[b, t, h], lse[b, t, h] = average_ref(scores, v[b, keys_seen, h // (heads // groups)], sink)
    return (y, lse) if return_lse else y


def positions_ref(
    sizes: tuple[int, int, int], q_pos: np.ndarray | None, k_pos: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """q_pos [b t] and k_pos [b s] for sizes (b, t, s), as given or by default."""
    b, t, s = sizes
    q_pos = np.tile(np.arange(s - t, s), (b, 1)) if q_pos is None else np.asarray(q_pos)
    k_pos = np.tile(np.arange(s), (b, 1)) if k_pos is None else np.asarray(k_pos)
    return q_pos, k_pos


def visible_ref(
    q_pos: np.ndarray,
    k_pos: np.ndarray,
    mask: np.ndarray | None = None,
    q_segment: np.ndarray | None = None,
    k_segment: np.ndarray | None = None,
    causal: bool = True,
    window: int | None = None,
) -> np.ndarray:
    """Bool [b t s]: whether query t of sequence b sees key s."""
    seen = np.zeros((*q_pos.shape, k_pos.shape[1]), bool)
    for b, t, s in np.ndindex(*seen.shape):
        here, there = int(q_pos[b, t]), int(k_pos[b, s])
        seen[b, t, s] = (
            here >= 0
            and there >= 0
            and (not causal or there <= here)
            and (window is None or abs(here - there) < window)
            and (mask is None or mask[b, t, s])
            and (q_segment is None or k_segment is None or q_segment[b, t] == k_segment[b, s])
        )
    return seen


def average_ref(scores: list[float], values: np.ndarray, sink: float = -np.inf) -> tuple[np.ndarray, float]:
    """Values [s j] averaged by the softmax of s scores and a sink that has no value -> y [j], lse."""
    y, peak = np.zeros(values.shape[1]), max([sink, *scores])
    if peak == -np.inf:
        return y, peak
    weights = [np.exp(score - peak) for score in scores]
    total = sum(weights) + np.exp(sink - peak)
    for weight, value in zip(weights, values, strict=True):
        y += weight / total * value
    return y, peak + np.log(total)
