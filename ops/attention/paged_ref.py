"""Attention over pages (PagedAttention, Kwon et al. 2023, arXiv:2309.06180, section 4.1), the definition.

Token i of sequence b lies in row i % o of page pages[b, i // o]. The sequence has `lengths[b]` tokens and the
queries are the last t of them; a query that would stand before the first token is padding (y = 0, lse = -inf,
or the sink). What a query sees and the rest is as in `attention_ref`.
"""

import numpy as np

from .ref import average_ref


def paged_attention_ref(
    q: np.ndarray,
    k_pages: np.ndarray,
    v_pages: np.ndarray,
    pages: np.ndarray,
    lengths: np.ndarray,
    *,
    sinks: np.ndarray | None = None,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """The definition: q [b t h k], k_pages [p o g k], v_pages [p o g j], pages [b m], lengths [b] -> y, lse.

    float64 y [b t h j], and lse [b t h] on request. Entries of `pages` that hold no token may be any number, and
    rows that hold none anything. `sinks` is [h].
    """
    (batch, times, heads, width), (rows, groups, channels) = q.shape, v_pages.shape[1:]
    q, k_pages, v_pages = (np.asarray(array, np.float64) for array in (q, k_pages, v_pages))
    factor = width**-0.5 if scale is None else scale

    def score(query: np.ndarray, key: np.ndarray) -> float:
        x = factor * sum(query * key)
        return x if softcap is None else softcap * np.tanh(x / softcap)

    y, lse = np.zeros((batch, times, heads, channels)), np.full((batch, times, heads), -np.inf)
    for b, t, h in np.ndindex(batch, times, heads):
        here = int(lengths[b]) - times + t
        first = 0 if window is None else max(0, here - window + 1)
        last = here if causal else int(lengths[b]) - 1
        if window is not None:
            last = min(last, here + window - 1)
        tokens = range(first, last + 1) if here >= 0 else range(0)
        places = [(pages[b, i // rows], i % rows, h // (heads // groups)) for i in tokens]
        scores = [score(q[b, t, h], k_pages[place]) for place in places]
        values = np.array([v_pages[place] for place in places]).reshape(-1, channels)
        sink = -np.inf if sinks is None else float(sinks[h])
        y[b, t, h], lse[b, t, h] = average_ref(scores, values, sink)
    return (y, lse) if return_lse else y
