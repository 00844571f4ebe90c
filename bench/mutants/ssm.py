"""Seeded bugs in the recurrent ops."""

from .mutant import Mutant

CONV, SCAN, SSD, DELTA, STEPS = (
    f"ssm/{name}.py" for name in ("conv", "selective_scan", "ssd", "gated_delta", "steps")
)

# (op, form, file) -> (bug, old, new)
BUGS = {
    ("causal_conv1d", "causal_conv1d", CONV): [
        ("taps in reverse order", "weight[:, j].astype", "weight[:, w - 1 - j].astype"),
        (
            "one token of the future is read",
            "* inputs[:, j : j + t]",
            "* jnp.roll(inputs, -1, axis=1)[:, j : j + t]",
        ),
        ("padding enters the state", "last = lengths[:, None]", "last = jnp.full_like(lengths, t)[:, None]"),
        ("ragged state ends a token early", "lengths[:, None] +", "jnp.maximum(lengths - 1, 0)[:, None] +"),
        ("full state ends a token early", "inputs[:, t:]", "inputs[:, t - 1 : -1]"),
        ("state is kept newest first", "last[:, :, None]", "last[:, ::-1, None]"),
        ("the state given is not read", "else state.astype(x.dtype)", "else jnp.zeros_like(state, x.dtype)"),
        ("the bias shows in padding", "zero_padding(lengths, y.astype(x.dtype))", "(y.astype(x.dtype),)"),
        (
            "the bias is added for every tap",
            "y = y + weight",
            "y = (y if j == 0 or bias is None else y + bias) + weight",
        ),
        (
            "products are summed in the input's dtype",
            "y = y + weight",
            "y = y.astype(x.dtype).astype(wide) + weight",
        ),
    ],
    ("selective_scan", "sequential_selective_scan", SCAN): [
        ("B and C swapped", "x, dt, B, C = token  #", "x, dt, C, B = token  #"),
        ("dt without softplus", "step_sizes(dt, dt_bias, softplus", "step_sizes(dt, dt_bias, False"),
        ("dt_bias left out", "step_sizes(dt, dt_bias,", "step_sizes(dt, None,"),
        ("the decay does not depend on dt", "jnp.exp(dt[:, None] * A)", "jnp.exp(A)"),
        ("A taken for its logarithm", "A.astype(wide), state", "-jnp.exp(A.astype(wide)), state"),
        ("the input is not scaled by dt", "(dt * x)[:, None]", "x[:, None]"),
        ("the skip D x left out", "y + D.astype(y.dtype) * x", "y"),
        ("D added instead of D x", "D.astype(y.dtype) * x", "D.astype(y.dtype)"),
        (
            "the state is rounded to bfloat16",
            "return state, (y",
            "return jax.lax.reduce_precision(state, 8, 7), (y",
        ),
        (
            "y is read before the token is written",
            'jnp.einsum("bni,bn->bi", state, C)',
            'jnp.einsum("bni,bn->bi", state - B[:, :, None] * (dt * x)[:, None], C)',
        ),
    ],
    ("selective_scan", "sequential_selective_scan", STEPS): [
        ("softplus overflows", "jax.nn.softplus(dt)", "jnp.log(1 + jnp.exp(dt))"),
        (
            "padding decays the state",
            "zero_padding(lengths, jax.nn.softplus(dt) if softplus else dt)[0]",
            "jax.nn.softplus(dt) if softplus else dt",
        ),
        (
            "dt_bias added after the softplus",
            "dt = dt + dt_bias.astype(dt.dtype)\n",
            "dt = jax.nn.softplus(dt) + dt_bias if softplus else dt + dt_bias\n        softplus = False\n",
        ),
    ],
    ("selective_scan", "associative_selective_scan", SCAN): [
        ("maps composed in the wrong order", "then[0] * first[1] + then[1]", "first[0] * then[1] + first[1]"),
        ("the first state does not decay", "decay * state[:, None] + added", "state[:, None] + added"),
        ("the first state left out", "decay * state[:, None] + added", "added"),
        (
            "zero-order hold for B, as in the paper",
            "added = (dt * x)[..., None] * B[:, :, None]",
            "added = (decay - 1) / A * x[..., None] * B[:, :, None]",
        ),
        (
            "the last state always, though all are asked for",
            "states if return_states else states[:, -1]",
            "states[:, -1]",
        ),
        (
            "decays rounded to bfloat16",
            "decay = jnp.exp(dt[..., None] * A)",
            "decay = jax.lax.reduce_precision(jnp.exp(dt[..., None] * A), 8, 7)",
        ),
    ],
    ("selective_scan", "chunked_selective_scan", SCAN): [
        ("the state is not handed to the next chunk", "return states[:, -1], (y", "return state, (y"),
        (
            "every chunk starts from zero",
            "y, states = scan_tree(A, state, tokens)\n        return",
            "y, states = scan_tree(A, jnp.zeros_like(state), tokens)\n        return",
        ),
        (
            "the state handed on is a token old",
            "return states[:, -1], (y",
            "return states[:, max(states.shape[1] - 2, 0)], (y",
        ),
    ],
    ("selective_scan", "chunked_selective_scan", STEPS): [
        (
            "the last token fills the last chunk",
            "(x.ndim - 2))\n        return",
            '(x.ndim - 2), mode="edge")\n        return',
        ),
        ("the first chunk is filled up, the last cut off", "(0, -t % chunk)", "(-t % chunk, 0)"),
    ],
    ("ssd", "recurrent_ssd", SSD): [
        (
            "head h reads group h % g",
            "* B[:, :, None, None]",
            "* jnp.tile(B, (1, x.shape[2], 1)).reshape(*x.shape[:3], 1, -1)",
        ),
        ("the groups of B in reverse order", "r), B, C\n", "r), B[:, :, ::-1], C\n"),
        ("A taken for its logarithm", "A.astype(wide).reshape(g, r)", "-jnp.exp(A.astype(wide)).reshape(g, r)"),
        ("the input is not scaled by dt", "(dt[..., None] * x)[..., None]", "x[..., None]"),
        (
            "the state is rounded to bfloat16",
            "return state, (y",
            "return jax.lax.reduce_precision(state, 8, 7), (y",
        ),
        (
            "the decay acts on the new input as well",
            "jnp.exp(dt * A)[..., None, None] * state + added",
            "jnp.exp(dt * A)[..., None, None] * (state + added)",
        ),
        (
            "D x is taken before padding is removed",
            "reshape(*y.shape[2:4], 1) * real",
            "reshape(*y.shape[2:4], 1) * x.reshape(y.shape).astype(y.dtype)",
        ),
        ("D left out", "if D is not None", "if False"),
    ],
    ("ssd", "quadratic_ssd", SSD): [
        ("dt left out of the weights", "added = dt[..., None] * x", "added = x"),
        (
            "the first state does not show in y",
            'y = y + jnp.einsum("bgrt,btgn,bgrkn->btgrk", from_start, C, state)',
            "pass",
        ),
        (
            "the first state decays a step too little",
            "jnp.exp(jnp.cumsum(log_decay, axis=-1))",
            "jnp.exp(jnp.cumsum(log_decay, axis=-1) - log_decay)",
        ),
        (
            "the first state does not reach the last",
            'states + jnp.einsum("bgrt,bgrkn->btgrkn", from_start[..., wanted], state)',
            "states",
        ),
        ("B and C swapped", '"btgn,bsgn->bgts", C, B', '"btgn,bsgn->bgts", B, C'),
        ("dt_bias left out", "step_sizes(dt, dt_bias,", "step_sizes(dt, None,"),
    ],
    ("ssd", "quadratic_ssd", STEPS): [
        (
            "exp before the mask",
            "jnp.exp(jnp.where(np.tri(t, dtype=bool), sums, -jnp.inf))",
            "jnp.exp((a := jnp.cumsum(log_decay, -1))[..., None] - a[..., None, :]) * jnp.tri(t, dtype=a.dtype)",
        ),
        ("the future is not masked", "jnp.where(np.tri(t, dtype=bool), sums, -jnp.inf)", "sums"),
        ("a token does not see itself", "np.tri(t, dtype=bool)", "np.tri(t, k=-1, dtype=bool)"),
        ("what comes in decays at once", "np.tri(t, k=-1, dtype=bool)", "np.tri(t, dtype=bool)"),
    ],
    ("ssd", "chunked_ssd", SSD): [
        ("the state is not handed to the next chunk", "return states[:, -1], (y", "return state, (y"),
        (
            "the states listed are those of the chunks' ends",
            "y, states if return_states else None)\n\n    last, (y, states) = scan_chunks(",
            "y, 0 * states + states[:, -1:] if return_states else None)\n\n    last, (y, states) = scan_chunks(",
        ),
        ("dt without softplus", "step_sizes(dt, dt_bias, softplus", "step_sizes(dt, dt_bias, False"),
        ("the state given is not read", "if state is None else state.astype(wide)", "if True else state"),
    ],
    ("ssd", "chunked_ssd", STEPS): [
        (
            "the last token fills the last chunk",
            "(x.ndim - 2))\n        return",
            '(x.ndim - 2), mode="edge")\n        return',
        ),
        (
            "padding decays the state",
            "zero_padding(lengths, jax.nn.softplus(dt) if softplus else dt)[0]",
            "jax.nn.softplus(dt) if softplus else dt",
        ),
    ],
    ("gated_delta", "recurrent_gated_delta", DELTA): [
        (
            "what is held is read before it decays",
            'held = jnp.einsum("bhkj,bhk->bhj", state, k)',
            'held = jnp.einsum("bhkj,bhk->bhj", state * jnp.exp(-log_decay)[..., None, None], k)',
        ),
        (
            "beta scales the write and not the erasure",
            "(beta[..., None] * (v - held))",
            "(beta[..., None] * v - held)",
        ),
        ("nothing is erased", "(v - held)", "v"),
        (
            "the decay acts on the write as well",
            "v - held))[..., None, :]",
            "v - held))[..., None, :] * jnp.exp(log_decay)[..., None, None]",
        ),
        ("no scale by default", "width**-0.5 if scale is None", "1.0 if scale is None"),
        ("scale by the width of values", "width**-0.5 if scale is None", "v.shape[3] ** -0.5 if scale is None"),
        ("the scale given is not used", "else scale)", "else width**-0.5)"),
        ("queries are normalised", "q = q * (width", "q = q / jnp.linalg.norm(q, axis=-1, keepdims=True) * (width"),
        (
            "padding decays the state",
            "q, k, v, log_decay, beta), state",
            "q, k, v, log_decay, beta)[:3] + (log_decay,) + zero_padding(lengths, beta), state",
        ),
        (
            "the state is rounded to bfloat16",
            "return state, (y",
            "return jax.lax.reduce_precision(state, 8, 7), (y",
        ),
    ],
    ("gated_delta", "chunked_gated_delta", DELTA): [
        ("beta left out of the triangular matrix", "overlap = beta * decay *", "overlap = decay *"),
        ("decay left out of the triangular matrix", "overlap = beta * decay *", "overlap = beta *"),
        ("the diagonal is not 1", "unit_diagonal=True", "unit_diagonal=False"),
        ("the transposed system is solved", "unit_diagonal=True", "unit_diagonal=True, transpose_a=True"),
        (
            "tokens of a chunk do not see each other's writes",
            "u = jax.lax.linalg.triangular_solve(overlap, missing, left_side=True, lower=True, unit_diagonal=True)",
            "u = missing",
        ),
        ("the state read for erasure has not decayed", "v - from_start * jnp", "v - jnp"),
        ("the state read for y has not decayed", "from_start * q, state", "q, state"),
        (
            "writes do not decay towards the state",
            "decay[:, :, wanted], k, u",
            "jnp.sign(decay[:, :, wanted]), k, u",
        ),
        ("the state is not handed to the next chunk", "return states[:, -1], (y", "return state, (y"),
        (
            "the first state decays a step too little",
            "jnp.cumsum(log_decay, axis=-1)",
            "(jnp.cumsum(log_decay, axis=-1) - log_decay)",
        ),
    ],
    ("gated_delta", "chunked_gated_delta", STEPS): [
        ("a token does not see its own write", "np.tri(t, dtype=bool)", "np.tri(t, k=-1, dtype=bool)"),
        ("the first chunk is filled up, the last cut off", "(0, -t % chunk)", "(-t % chunk, 0)"),
    ],
}
MUTANTS = [
    Mutant(op, form, bug, file, old, new) for (op, form, file), bugs in BUGS.items() for bug, old, new in bugs
]
