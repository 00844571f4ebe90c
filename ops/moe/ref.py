"""Mixture of experts, the definition: a router chooses m of e feed-forward experts for each token.

Router: scores are the softmax of the logits, or a sigmoid of each; the m experts with the highest scores get
their scores as weights.

    Shazeer et al. 2017, arXiv:1701.06538   softmax over the chosen alone: `normalise`, as common factors cancel
      so in Mixtral, arXiv:2401.04088, DBRX, Qwen3-MoE, gpt-oss, arXiv:2508.10925
    OLMoE, arXiv:2409.02060                 softmax over all, not normalised
    DeepSeek-V2, arXiv:2405.04434           and experts only from the best groups, rated by their best score
    DeepSeek-V3, arXiv:2412.19437, eq. 13-16  sigmoid, normalised; a bias that balances the load takes part in
                                            the choice and not in the weights; groups rated by their best two

Experts: y_t = sum_j weights_tj (silu(x_t w_gate_E) * (x_t w_up_E)) w_down_E     with E = experts_tj
"""

from typing import Literal

import numpy as np

Scoring = Literal["softmax", "sigmoid"]


def route_ref(
    logits: np.ndarray,
    *,
    top_k: int,
    scoring: Scoring = "softmax",
    normalise: bool = True,
    bias: np.ndarray | None = None,
    groups: int | None = None,
    top_groups: int | None = None,
    scale: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Router logits [t e] -> weights float64 [t m], experts int [t m] with m = top_k, the best choice first.

    Equals go to the lower index, of experts and of groups. `normalise` divides the weights of a token by their
    sum, `scale` then multiplies them. `bias` [e] is added to the scores for the choice. With `groups` of e /
    groups neighbours each, only experts of a token's best `top_groups` can be chosen; a group is rated by its
    best expert, with a bias by the sum of its best two (as in DeepSeek's own code for V2 and V3).
    """
    t, e = logits.shape
    logits = np.asarray(logits, np.float64)
    weights, experts = np.zeros((t, top_k)), np.zeros((t, top_k), int)
    for row in range(t):
        if scoring == "softmax":
            scores = np.exp(logits[row] - logits[row].max())
            scores /= scores.sum()
        else:
            scores = np.exp(-np.logaddexp(0, -logits[row]))
        # Scores are in the logits' order, but two tiny ones may round to the same.
        rating = logits[row] if bias is None else scores + np.asarray(bias, np.float64)
        allowed = list(range(e))
        if groups is not None:
            members = np.arange(e).reshape(groups, -1)
            counted = 1 if bias is None else 2
            strength = [sum(sorted(rating[group], reverse=True)[:counted]) for group in members]
            best = sorted(range(groups), key=lambda group: -strength[group])[:top_groups]
            allowed = sorted(members[best].reshape(-1))
        experts[row] = sorted(allowed, key=lambda expert: -rating[expert])[:top_k]  # sorting is stable
        weights[row] = scores[experts[row]]
        if normalise:
            weights[row] /= weights[row].sum()
    return weights * scale, experts


def moe_ref(
    x: np.ndarray,
    weights: np.ndarray,
    experts: np.ndarray,
    w_gate: np.ndarray,
    w_up: np.ndarray,
    w_down: np.ndarray,
) -> np.ndarray:
    """Tokens x [t d], weights and experts [t m] of each; w_gate, w_up [e d f], w_down [e f d] -> float64 [t d].

    The experts of one token differ.
    """
    x, weights, w_gate, w_up, w_down = (np.asarray(a, np.float64) for a in (x, weights, w_gate, w_up, w_down))
    y = np.zeros_like(x)
    for token, slot in np.ndindex(*np.shape(experts)):
        expert = experts[token, slot]
        gate, up = x[token] @ w_gate[expert], x[token] @ w_up[expert]
        silu = gate * np.exp(-np.logaddexp(0, -gate))
        y[token] += weights[token, slot] * ((silu * up) @ w_down[expert])
    return y


def moe_capacity_ref(
    x: np.ndarray,
    weights: np.ndarray,
    experts: np.ndarray,
    w_gate: np.ndarray,
    w_up: np.ndarray,
    w_down: np.ndarray,
    *,
    capacity: int,
) -> np.ndarray:
    """As `moe_ref`, but each expert serves the first `capacity` tokens that chose it and adds 0 to later ones.

    Switch Transformer (Fedus et al. 2021, arXiv:2101.03961, section 2.2); the weights of what is left stay.
    """
    served = np.array(weights, np.float64)
    queue = np.zeros(len(w_gate), int)
    for token, slot in np.ndindex(*np.shape(experts)):
        expert = experts[token, slot]
        if queue[expert] >= capacity:
            served[token, slot] = 0
        queue[expert] += 1
    return moe_ref(x, served, experts, w_gate, w_up, w_down)
