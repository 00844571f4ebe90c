"""Speculative sampling (Leviathan et al. 2022, arXiv:2211.17192, algorithm 1), the definition.

A cheap model drafted m tokens, x_j from q_j; the target model's distributions p_j are known for all places at
once. Going from the left,

    x_j is kept if u_j q_j(x_j) < p_j(x_j),     that is with probability min(1, p_j(x_j) / q_j(x_j))

and the first one that is not is replaced by a token from the residual max(p_j - q_j, 0), normalised. If all are
kept, one more token comes from p_m. Every token is then distributed as if the target had drawn it. Greedy
decoding is the case where p is one-hot.
"""

import itertools
import math

import numpy as np


def sample_ref(probs: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """probs [b v] (>= 0, any sum), uniforms [b] in [0, 1) -> int [b]: where the sum first exceeds its share u."""
    tokens = np.zeros(len(probs), int)
    for row in range(len(probs)):
        weights = [float(weight) for weight in probs[row]]
        passed, mark = 0.0, float(uniforms[row]) * sum(weights)
        for token, weight in enumerate(weights):
            passed += weight
            if passed > mark:
                tokens[row] = token
                break
    return tokens


def accept_ref(
    draft: np.ndarray, draft_probs: np.ndarray, target_probs: np.ndarray, uniforms: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """draft [b m], q = draft_probs [b m v], p = target_probs [b m+1 v], u = uniforms [b m+1] in [0, 1).

    -> tokens int [b m+1], the kept ones, one from the target, then -1; n_accepted int [b], 0 to m. The last
    uniform draws the target's token. If rounding leaves no residual, it comes from p itself.
    """
    b, m = draft.shape
    p, q = np.asarray(target_probs, np.float64), np.asarray(draft_probs, np.float64)
    tokens, n_accepted = np.full((b, m + 1), -1), np.zeros(b, int)
    for row in range(b):
        n = 0
        while n < m and float(uniforms[row, n]) * q[row, n, draft[row, n]] < p[row, n, draft[row, n]]:
            tokens[row, n] = draft[row, n]
            n += 1
        residual = np.maximum(p[row, n] - q[row, n], 0) if n < m else p[row, m]
        if not residual.any():
            residual = p[row, n]
        tokens[row, n] = sample_ref(residual[None], uniforms[row, m:])[0]
        n_accepted[row] = n
    return tokens, n_accepted


def accept_tree_ref(
    draft: np.ndarray,
    parent: np.ndarray,
    draft_probs: np.ndarray,
    target_probs: np.ndarray,
    uniforms: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same for a tree of m drafted tokens (Miao et al. 2023, arXiv:2305.09781, algorithm 2).

    parent int [b m]: the earlier drafted token that each one follows, -1 for none, -2 for one that is not there.
    target_probs [b m+1 v]: p at the start, then after each drafted token; draft_probs and uniforms as in
    `accept_ref`, a token's q given its elder siblings.

    Where a token is not kept, the residual takes the place of p, and its next sibling is tried. -> tokens int
    [b m+1] as there, path int [b m], the indices of the kept ones, then -1, and n_accepted int [b]. With
    parent j = j - 1 it is `accept_ref`.
    """
    b, m = draft.shape
    tokens, path, n_accepted = np.full((b, m + 1), -1), np.full((b, m), -1), np.zeros(b, int)
    for row in range(b):
        last, left, n = -1, np.array(target_probs[row, 0], np.float64), 0
        for node in range(m):
            if parent[row, node] != last:
                continue
            x, q = draft[row, node], np.asarray(draft_probs[row, node], np.float64)
            if float(uniforms[row, node]) * q[x] * left.sum() < left[x]:
                tokens[row, n], path[row, n] = x, node
                last, left, n = node, np.array(target_probs[row, node + 1], np.float64), n + 1
            else:
                residual = np.maximum(left - q * left.sum(), 0)
                left = residual if residual.any() else left
        tokens[row, n] = sample_ref(left[None], uniforms[row, m:])[0]
        n_accepted[row] = n
    return tokens, path, n_accepted


def accept_distribution_ref(draft_probs: np.ndarray, target_probs: np.ndarray) -> np.ndarray:
    """How likely each result is if drafts come from q: [m v], [m+1 v] -> float64 [v+1] * (m+1), of small v and m.

    Entry [x_0 + 1, ..., x_m + 1] belongs to tokens x_0 ... x_m, index 0 to the -1 of an empty place. Token x is
    drafted and kept with probability q(x) min(1, p(x) / q(x)) = min(p(x), q(x)), and replaces another with
    max(p(x) - q(x), 0), since the residual's sum is the probability of a rejection.
    """
    (m, v), p = draft_probs.shape, np.asarray(target_probs, np.float64)
    q = np.vstack([np.asarray(draft_probs, np.float64), np.zeros(v)])  # nothing is drafted for the last place
    y = np.zeros((v + 1,) * (m + 1))
    for n in range(m + 1):
        for tokens in itertools.product(range(v), repeat=n + 1):
            kept = math.prod(min(p[j, x], q[j, x]) for j, x in enumerate(tokens[:n]))
            place = tuple(x + 1 for x in tokens) + (0,) * (m - n)
            y[place] = kept * max(p[n, tokens[n]] - q[n, tokens[n]], 0)
    return y
