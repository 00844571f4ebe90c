"""On what every form of the recurrent ops is tried: by tests, benches and outside kernels alike."""

from functools import partial

from ..cases import Case, Law, Op
from . import draws, laws
from .conv import SHAPES as CONV
from .conv import causal_conv1d, causal_conv1d_ref
from .gated_delta import SHAPES as DELTA
from .gated_delta import chunked_gated_delta, recurrent_gated_delta
from .ref import gated_delta_ref, selective_scan_ref, ssd_ref
from .selective_scan import SHAPES as SCAN
from .selective_scan import associative_selective_scan, chunked_selective_scan, sequential_selective_scan
from .ssd import SHAPES as HEADS
from .ssd import chunked_ssd, quadratic_ssd, recurrent_ssd

STEP = ("D", "dt_bias", "state")
RAGGED = ("state", "lengths")
ALL = (*STEP, "lengths")
SOFTPLUS = {"softplus": True}
STATES = {"return_states": True}

CAUSAL_CONV1D = Op(
    name="causal_conv1d",
    ref=causal_conv1d_ref,
    forms={"causal_conv1d": causal_conv1d},
    required=("x", "weight"),
    outputs=("y", "state"),
    cases=(
        Case("one of everything", {"b": 1, "t": 1, "i": 1, "w": 1}),
        Case("decode one token", {"b": 3, "t": 1, "i": 5, "w": 4}, inputs=("bias", "state")),
        Case("fewer tokens than taps", {"b": 2, "t": 2, "i": 3, "w": 4}),
        Case("bias", {"b": 2, "t": 9, "i": 5, "w": 4}, inputs=("bias",)),
        Case("state", {"b": 2, "t": 7, "i": 3, "w": 2}, inputs=("state",)),
        Case("ragged", {"b": 4, "t": 6, "i": 4, "w": 4}, inputs=("bias", "state", "lengths")),
        Case("ragged from nothing", {"b": 4, "t": 3, "i": 2, "w": 5}, inputs=("lengths",)),
        Case("one tap", {"b": 2, "t": 5, "i": 3, "w": 1}, inputs=("bias", "lengths")),
        Case("many taps", {"b": 1, "t": 33, "i": 3, "w": 12}, inputs=("bias", "state")),
        Case("many channels", {"b": 2, "t": 4, "i": 130, "w": 4}, inputs=("bias",)),
        Case("long", {"b": 1, "t": 600, "i": 2, "w": 4}, inputs=("state",)),
    ),
    draw=draws.draw_conv,
    styles={
        "poisoned padding": partial(draws.poisoned_padding, CONV),
        "large term": partial(draws.large_term, "weight"),
        "tiny": partial(draws.tiny, "x"),
    },
    exact=draws.exact_conv,
    laws=(
        *laws.time_laws(CONV, linear="x", unset=("bias",)),
        Law("channels do not mix", partial(laws.mirrored, CONV, "i", "x")),
    ),
    batched=("x", "state", "lengths"),
)

SELECTIVE_SCAN = Op(
    name="selective_scan",
    ref=selective_scan_ref,
    forms={
        "sequential_selective_scan": sequential_selective_scan,
        "associative_selective_scan": associative_selective_scan,
        "chunked_selective_scan": chunked_selective_scan,
    },
    required=("x", "dt", "A", "B", "C"),
    outputs=("y", "state"),
    cases=(
        Case("one of everything", {"b": 1, "t": 1, "i": 1, "n": 1}),
        Case("decode one token", {"b": 3, "t": 1, "i": 8, "n": 4}, SOFTPLUS, STEP),
        Case("plain", {"b": 2, "t": 7, "i": 5, "n": 16}),
        Case("softplus", {"b": 1, "t": 6, "i": 8, "n": 8}, SOFTPLUS),
        Case("ragged", {"b": 4, "t": 6, "i": 8, "n": 8}, inputs=ALL),
        Case("every state", {"b": 3, "t": 9, "i": 6, "n": 8}, STATES, RAGGED),
        Case("a chunk less one", {"b": 1, "t": 63, "i": 8, "n": 8}, inputs=("dt_bias",)),
        Case("a chunk and one", {"b": 2, "t": 65, "i": 8, "n": 8}, SOFTPLUS, ALL),
        Case("two chunks and two", {"b": 2, "t": 130, "i": 6, "n": 16}, SOFTPLUS | STATES, ALL),
        Case("long", {"b": 1, "t": 600, "i": 4, "n": 16}, inputs=("D", "state")),
    ),
    draw=draws.draw_ssm,
    styles={
        "poisoned padding": partial(draws.poisoned_padding, SCAN),
        "large term": partial(draws.large_term, "C"),
        "tiny": partial(draws.tiny, "x"),
        "all forgotten": draws.all_forgotten,
        "all remembered": draws.all_remembered,
        "long steps": draws.long_steps,
    },
    exact=draws.exact_ssm,
    laws=(
        *laws.time_laws(SCAN, linear="x"),
        *laws.state_laws(SCAN, "x", laws.forget_by_step),
        Law("channels do not mix", partial(laws.mirrored, SCAN, "i", "x")),
        Law("the state has no order", partial(laws.mirrored, SCAN, "n", "x")),
    ),
    batched=("x", "dt", "B", "C", "state", "lengths"),
    wide=("A", "D", "dt_bias", "state"),
)

SSD = Op(
    name="ssd",
    ref=ssd_ref,
    forms={"recurrent_ssd": recurrent_ssd, "quadratic_ssd": quadratic_ssd, "chunked_ssd": chunked_ssd},
    required=("x", "dt", "A", "B", "C"),
    outputs=("y", "state"),
    cases=(
        Case("one of everything", {"b": 1, "t": 1, "g": 1, "r": 1, "k": 1, "n": 1}),
        Case("decode one token", {"b": 3, "t": 1, "g": 2, "r": 2, "k": 8, "n": 4}, SOFTPLUS, STEP),
        Case("plain", {"b": 2, "t": 7, "g": 1, "r": 3, "k": 8, "n": 16}),
        Case("softplus", {"b": 1, "t": 6, "g": 3, "r": 1, "k": 4, "n": 8}, SOFTPLUS),
        Case("ragged", {"b": 4, "t": 6, "g": 2, "r": 3, "k": 8, "n": 8}, inputs=ALL),
        Case("every state", {"b": 3, "t": 9, "g": 2, "r": 2, "k": 5, "n": 8}, STATES, RAGGED),
        Case("a chunk less one", {"b": 1, "t": 63, "g": 1, "r": 2, "k": 8, "n": 8}, inputs=("dt_bias",)),
        Case("a chunk and one", {"b": 2, "t": 65, "g": 2, "r": 1, "k": 8, "n": 8}, SOFTPLUS, ALL),
        Case("two chunks and two", {"b": 2, "t": 130, "g": 1, "r": 2, "k": 8, "n": 16}, SOFTPLUS | STATES, ALL),
        Case("long", {"b": 1, "t": 600, "g": 1, "r": 2, "k": 8, "n": 16}, inputs=("D", "state")),
    ),
    draw=draws.draw_ssm,
    styles=SELECTIVE_SCAN.styles,
    exact=draws.exact_ssm,
    laws=(
        *laws.time_laws(HEADS, linear="x"),
        *laws.state_laws(HEADS, "x", laws.forget_by_step),
        Law("a group is its heads' own B and C", laws.repeated_groups),
        Law("heads do not mix", partial(laws.mirrored, HEADS, "gh", "x")),
        Law("channels of a head do not mix", partial(laws.mirrored, HEADS, "k", "x")),
        Law("the state has no order", partial(laws.mirrored, HEADS, "n", "x")),
    ),
    batched=("x", "dt", "B", "C", "state", "lengths"),
    wide=("A", "D", "dt_bias", "state"),
)

GATED_DELTA = Op(
    name="gated_delta",
    ref=gated_delta_ref,
    forms={"recurrent_gated_delta": recurrent_gated_delta, "chunked_gated_delta": chunked_gated_delta},
    required=("q", "k", "v", "log_decay", "beta"),
    outputs=("y", "state"),
    cases=(
        Case("one of everything", {"b": 1, "t": 1, "h": 1, "k": 1, "j": 1}),
        Case("decode one token", {"b": 3, "t": 1, "h": 2, "k": 4, "j": 8}, inputs=("state",)),
        Case("plain", {"b": 2, "t": 7, "h": 2, "k": 16, "j": 16}),
        Case("scale", {"b": 1, "t": 5, "h": 3, "k": 8, "j": 6}, {"scale": 0.5}),
        Case("ragged", {"b": 4, "t": 6, "h": 2, "k": 16, "j": 8}, inputs=RAGGED),
        Case("every state", {"b": 3, "t": 9, "h": 2, "k": 4, "j": 8}, STATES, RAGGED),
        Case("a chunk less one", {"b": 1, "t": 63, "h": 2, "k": 16, "j": 8}),
        Case("a chunk and one", {"b": 2, "t": 65, "h": 2, "k": 8, "j": 12}, {"scale": 1.0}, RAGGED),
        Case("two chunks and two", {"b": 2, "t": 130, "h": 2, "k": 16, "j": 8}, STATES, RAGGED),
        Case("long", {"b": 1, "t": 600, "h": 1, "k": 16, "j": 8}, inputs=("state",)),
    ),
    draw=draws.draw_delta,
    styles={
        "poisoned padding": partial(draws.poisoned_padding, DELTA),
        "large term": partial(draws.large_term, "q"),
        "tiny": partial(draws.tiny, "v"),
        "all forgotten": draws.delta_forgotten,
        "all remembered": draws.delta_remembered,
        "similar keys": draws.similar_keys,
        "empty keys": draws.empty_keys,
    },
    exact=draws.exact_delta,
    laws=(
        *laws.time_laws(DELTA, linear="v"),
        *laws.state_laws(DELTA, "v", laws.forget_by_decay),
        Law("what was written last is read", laws.overwritten),
        Law("heads do not mix", partial(laws.mirrored, DELTA, "h", "v")),
        Law("keys have no order", partial(laws.mirrored, DELTA, "k", "v")),
        Law("values do not mix", partial(laws.mirrored, DELTA, "j", "v")),
    ),
    batched=("q", "k", "v", "log_decay", "beta", "state", "lengths"),
    wide=("log_decay", "state"),
)

OPS = (CAUSAL_CONV1D, SELECTIVE_SCAN, SSD, GATED_DELTA)
