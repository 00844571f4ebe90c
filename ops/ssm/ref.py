"""Three recurrences with a state of fixed size, the definitions.

    selective scan  h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t            Gu and Dao 2023, arXiv:2312.00752, eq. 2
    SSD             S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T          Dao and Gu 2024, arXiv:2405.21060
    gated delta     S_t = alpha_t S_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T
                                                                        Yang et al. 2024, arXiv:2412.06464, sec. 3

B is discretised as every released Mamba does it, by dt B (Euler), where eq. 4 of the paper has zero-order hold.

Common to all: `state` is what the tokens before left behind (None is zeros), and what these leave is returned, so
that a text may be fed in pieces of any size. `lengths` [b] says how many of a row's t tokens are real (None is
all): the others change no state, may hold anything, and get y = 0. `return_states` gives the state after each
token in place of the last one, so that tokens can be taken back.
"""

import numpy as np


def selective_scan_ref(
    x: np.ndarray,
    dt: np.ndarray,
    A: np.ndarray,
    B: np.ndarray,
    C: np.ndarray,
    D: np.ndarray | None = None,
    *,
    dt_bias: np.ndarray | None = None,
    softplus: bool = False,
    state: np.ndarray | None = None,
    lengths: np.ndarray | None = None,
    return_states: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The definition: x, dt [b t i], A [i n], B, C [b t n] -> float64 y [b t i] and state [b i n] or [b t i n].

    y_t = C_t . h_t + D x_t with D [i]. The step is dt + dt_bias [i], through softplus if asked for. A is the
    decay rate itself (usually negative), not its logarithm.
    """
    x, dt, A, B, C = (np.asarray(array, np.float64) for array in (x, dt, A, B, C))
    (batch, times, inner), n = x.shape, A.shape[1]
    D = np.zeros(inner) if D is None else np.asarray(D, np.float64)
    dt_bias = np.zeros(inner) if dt_bias is None else np.asarray(dt_bias, np.float64)
    state = np.zeros((batch, inner, n)) if state is None else np.asarray(state, np.float64)
    lengths = np.full(batch, times) if lengths is None else lengths
    y, states = np.zeros_like(x), np.zeros((batch, times, inner, n))

    for b, i in np.ndindex(batch, inner):
        h = state[b, i]
        for t in range(times):
            if t < lengths[b]:
                step = step_ref(dt[b, t, i] + dt_bias[i], softplus)
                h = np.exp(step * A[i]) * h + step * B[b, t] * x[b, t, i]
                y[b, t, i] = sum(C[b, t] * h) + D[i] * x[b, t, i]
            states[b, t, i] = h
    return y, states if return_states else states[:, -1]


def ssd_ref(
    x: np.ndarray,
    dt: np.ndarray,
    A: np.ndarray,
    B: np.ndarray,
    C: np.ndarray,
    D: np.ndarray | None = None,
    *,
    dt_bias: np.ndarray | None = None,
    softplus: bool = False,
    state: np.ndarray | None = None,
    lengths: np.ndarray | None = None,
    return_states: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The definition: x [b t h k], dt [b t h], A [h], B, C [b t g n] -> float64 y and state [b (t) h k n].

    y_t = S_t C_t + D x_t with D [h]: Mamba-1 with one decay a head. Head h reads group h // (h_total / g_total)
    of B and C. The step is dt + dt_bias [h], through softplus if asked for.
    """
    x, dt, A, B, C = (np.asarray(array, np.float64) for array in (x, dt, A, B, C))
    (batch, times, heads, width), (groups, n) = x.shape, B.shape[2:]
    D = np.zeros(heads) if D is None else np.asarray(D, np.float64)
    dt_bias = np.zeros(heads) if dt_bias is None else np.asarray(dt_bias, np.float64)
    state = np.zeros((batch, heads, width, n)) if state is None else np.asarray(state, np.float64)
    lengths = np.full(batch, times) if lengths is None else lengths
    y, states = np.zeros_like(x), np.zeros((batch, times, heads, width, n))

    for b, h in np.ndindex(batch, heads):
        S, g = state[b, h], h // (heads // groups)
        for t in range(times):
            if t < lengths[b]:
                step = step_ref(dt[b, t, h] + dt_bias[h], softplus)
                S = np.exp(step * A[h]) * S + step * np.outer(x[b, t, h], B[b, t, g])
                y[b, t, h] = S @ C[b, t, g] + D[h] * x[b, t, h]
            states[b, t, h] = S
    return y, states if return_states else states[:, -1]


def gated_delta_ref(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    log_decay: np.ndarray,
    beta: np.ndarray,
    *,
    scale: float | None = None,
    state: np.ndarray | None = None,
    lengths: np.ndarray | None = None,
    return_states: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The definition: q, k [b t h k], v [b t h j] -> float64 y [b t h j] and state [b h k j] or [b t h k j].

    `j` is the width of a value, which may differ from that of a key. y_t = scale S_t q_t, with scale 1/sqrt(k) by
    default; alpha = exp(log_decay), log_decay [b t h] <= 0 (-inf forgets everything) and beta [b t h] in [0, 1].
    The state is the paper's S transposed, keys first. Nothing is normalised in here: for the rule to be stable
    keys come in with length 1 or less.
    """
    q, k, v, log_decay, beta = (np.asarray(array, np.float64) for array in (q, k, v, log_decay, beta))
    (batch, times, heads, width), values = k.shape, v.shape[3]
    scale = width**-0.5 if scale is None else scale
    state = np.zeros((batch, heads, width, values)) if state is None else np.asarray(state, np.float64)
    lengths = np.full(batch, times) if lengths is None else lengths
    y, states = np.zeros_like(v), np.zeros((batch, times, heads, width, values))

    for b, h in np.ndindex(batch, heads):
        S = state[b, h].T
        for t in range(times):
            if t < lengths[b]:
                key, write = k[b, t, h], beta[b, t, h]
                erase = np.eye(width) - write * np.outer(key, key)
                S = np.exp(log_decay[b, t, h]) * S @ erase + write * np.outer(v[b, t, h], key)
                y[b, t, h] = scale * S @ q[b, t, h]
            states[b, t, h] = S.T
    return y, states if return_states else states[:, -1]


def step_ref(dt: float, softplus: bool) -> float:
    """The step taken: dt, or softplus(dt) = log(1 + exp(dt)), which is positive."""
    return np.logaddexp(0, dt) if softplus else dt
