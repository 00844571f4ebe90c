"""Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762, eq. 1), the definition.

    y_t = sum_s softmax_s(scale * q_t . k_s) v_s        over the keys s that query t may see

Grouped queries (Ainslie et al. 2023, arXiv:2305.13245): query head h reads KV head h // (h_total / g_total).
Query t sees key s if s holds a token (k_pos >= 0), t is one (q_pos >= 0), `mask` allows it, and, when causal,
k_pos <= q_pos. A query that sees nothing gets y = 0 and lse = -inf.
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
    causal: bool = True,
    scale: float | None = None,
    return_lse: bool = False,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """The definition: q [b t h k], k and v [b s g k] -> float64 y [b t h k], and lse [b t h] on request.

    `q_pos` [b t] and `k_pos` [b s] are absolute positions, negative for padding; by default keys stand at
    0 … s-1 and queries are the last t of them. `mask` [b t s] is True where a query may look; `scale` is
    1/sqrt(k) by default.
    """
    (batch, times, heads, width), (keys, groups) = q.shape, k.shape[1:3]
    q, k, v = (np.asarray(array, np.float64) for array in (q, k, v))
    q_pos = np.tile(np.arange(keys - times, keys), (batch, 1)) if q_pos is None else np.asarray(q_pos)
    k_pos = np.tile(np.arange(keys), (batch, 1)) if k_pos is None else np.asarray(k_pos)
    scale = width**-0.5 if scale is None else scale
    y, lse = np.zeros_like(q), np.full((batch, times, heads), -np.inf)

    def sees(b: int, t: int, s: int) -> bool:
        real = q_pos[b, t] >= 0 and k_pos[b, s] >= 0
        return real and (not causal or k_pos[b, s] <= q_pos[b, t]) and (mask is None or mask[b, t, s])

    for b, t, h in np.ndindex(batch, times, heads):
        seen = [s for s in range(keys) if sees(b, t, s)]
        if not seen:
            continue
        g = h // (heads // groups)
        scores = np.array([scale * sum(q[b, t, h] * k[b, s, g]) for s in seen])
        weights = np.exp(scores - scores.max())
        y[b, t, h] = sum(weight * v[b, s, g] for weight, s in zip(weights / weights.sum(), seen, strict=True))
        lse[b, t, h] = scores.max() + np.log(weights.sum())
    return (y, lse) if return_lse else y
