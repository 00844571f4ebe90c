"""Where ops and whole steps stand under this machine's roof: `python -m bench.roofline`.

A program that does F operations on B bytes takes at least the longer of F / peak and B / bandwidth, and which of
the two it is depends on F / B, its intensity (Williams et al. 2009, doi:10.1145/1498765.1498785). Both limits are
measured here, with products that are large and simple. F is what an op's definition takes, whatever a form of it
spends; B is its arguments and results, each once. Arguments are cold: so many copies take turns that no cache holds
them all, as in a model, where other layers come between. Ops have the sizes of SmolLM2-135M and of Mamba layers
like it; steps are SmolLM2's. Writes results/roofline.json and, with the `plots` extra, results/roofline.png.
"""

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import click
import jax
import jax.numpy as jnp
import numpy as np

import minillm
from minillm import ops
from minillm.cache import StateSpec
from minillm.generate import advance
from minillm.lm import LM
from minillm.ops.cases import Case, Op
from minillm.ops.judge import OPS
from minillm.ops.judge.trials import cast
from minillm.sampling import new_sampler
from minillm.xla import memory_bandwidth, on_device

from .peers import MODEL
from .report import RESULTS, pyplot, ratio, rounded, show_table, spread, table, where_and_what, write
from .timing import rotated, wait_for_quiet

COLD = 128 << 20  # bytes of all copies of the arguments together; four times the largest cache here
MOST_COPIES = 64
CONTEXT = 512  # tokens in memory when a step decodes
STEPS = 6
SIDE = 2048  # of the product that finds the peak
PEAKS = {"float32": (jnp.float32, jnp.float32), "int8": (jnp.int8, jnp.int32)}  # of what, summed in what


class Work(NamedTuple):
    """What a program must do at least: operations, bytes, and in which numbers it multiplies (one of PEAKS)."""

    flops: float
    bytes: float
    kind: str = "float32"


class Kernel(NamedTuple):
    """An op to measure: by which form, of which sizes, and the operations of its definition from those."""

    op: str
    form: Callable
    sizes: dict[str, int]
    flops: Callable[..., float]
    options: Mapping[str, Any] = MappingProxyType({})
    kind: str = "float32"


ATTENTION = {"b": 1, "g": 3, "r": 3, "k": 64, "j": 64}


def attention_flops(b: int, t: int, past: int, g: int, r: int, k: int, j: int) -> float:
    """Two products for each pair of a query and a key that it sees."""
    return 2 * b * t * (past + (t + 1) / 2) * g * r * (k + j)


PROMPT = ATTENTION | {"t": 512, "past": 0}
PRODUCT = {"c": 1, "o": 576, "f": 3072}  # d = c o


def product_flops(t: int, c: int, o: int, f: int) -> float:
    return 2 * t * c * o * f


KERNELS: dict[str, Kernel] = {
    "attention, 1 token, 2,048 before": Kernel(
        "attention", ops.naive_attention, ATTENTION | {"t": 1, "past": 2048}, attention_flops
    ),
    "attention, 512 tokens": Kernel("attention", ops.naive_attention, PROMPT, attention_flops),
    "the same in blocks": Kernel("attention", ops.blocked_attention, PROMPT, attention_flops),
    "W8A8 product, 2 tokens": Kernel(
        "int8_matmul", ops.int8_matmul, PRODUCT | {"t": 2}, product_flops, kind="int8"
    ),
    "W8A8 product, 512 tokens": Kernel(
        "int8_matmul", ops.int8_matmul, PRODUCT | {"t": 512}, product_flops, kind="int8"
    ),
    "RMSNorm, 512 tokens": Kernel(
        "rms_norm", ops.rms_norm, {"t": 512, "d": 576}, lambda t, d: 4 * t * d, {"eps": 1e-5}
    ),
    "RoPE, 512 tokens": Kernel(
        "rope",
        ops.apply_rope,
        {"b": 1, "t": 512, "h": 9, "j": 32, "u": 0, "s": 512},
        lambda b, t, h, j, u, s: 6 * b * t * h * j,
    ),
    "SwiGLU, 512 tokens": Kernel("swiglu", ops.swiglu, {"t": 512, "f": 1536}, lambda t, f: 5 * t * f),
    "convolution, 512 tokens": Kernel(
        "causal_conv1d",
        ops.causal_conv1d,
        {"b": 1, "t": 512, "i": 1536, "w": 4},
        lambda b, t, i, w: 2 * b * t * i * w,
    ),
    "selective scan, 512 tokens": Kernel(
        "selective_scan",
        ops.sequential_selective_scan,
        {"b": 1, "t": 512, "i": 1536, "n": 16},
        lambda b, t, i, n: 7 * b * t * i * n,
    ),
    "SSD, 512 tokens": Kernel(
        "ssd",
        ops.chunked_ssd,
        {"b": 1, "t": 512, "g": 1, "r": 24, "k": 64, "n": 64},
        lambda b, t, g, r, k, n: 5 * b * t * g * r * k * n,
    ),
    "gated delta rule, 512 tokens": Kernel(
        "gated_delta",
        ops.chunked_gated_delta,
        {"b": 1, "t": 512, "h": 9, "k": 64, "j": 64},
        lambda b, t, h, k, j: 7 * b * t * h * k * j,
    ),
    "2 of 8 experts, 64 tokens": Kernel(
        "moe",
        ops.moe_capacity,
        {"t": 64, "d": 576, "f": 1536, "e": 8, "m": 2},
        lambda t, d, f, e, m: 6 * t * m * d * f,
    ),
    "cross-entropy, 128 tokens": Kernel(
        "cross_entropy", ops.cross_entropy, {"t": 128, "v": 49152}, lambda t, v: 4 * t * v
    ),
}


@click.command(help=__doc__)
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1), help="Turns of each.")
def main(rounds: int) -> None:
    report = measure({name: kernel_turn(one) for name, one in KERNELS.items()} | step_turns(), rounds)
    report |= where_and_what()
    show_table(report["table"])
    write("roofline", report)
    plot(report, RESULTS / "roofline.png")


Turn = tuple[Work, Callable[[], float]]


def measure(turns: dict[str, Turn], rounds: int) -> dict[str, Any]:
    """Play the rounds and report on them; each has the machine's limits measured anew."""
    limits, seconds = [], []
    for _, turn in turns.values():
        turn()  # compiles
    for number in range(rounds):
        wait_for_quiet()
        limits.append({"bandwidth": memory_bandwidth()} | {kind: peak(kind) for kind in PEAKS})
        seconds.append({name: turns[name][1]() for name in rotated([*turns], number)})
    works = {name: work for name, (work, _) in turns.items()}
    points = {
        name: {
            "flops_per_byte": rounded(work.flops / work.bytes),
            "gflop_s": rounded(np.median([work.flops / one[name] for one in seconds]) / 1e9),
            "ms": rounded(1e3 * np.median([one[name] for one in seconds])),
            "megabytes": rounded(work.bytes / 1e6),
            "numbers": work.kind,
        }
        for name, work in works.items()
    }
    shares = {
        name: ratio([least_seconds(work, limit) / one[name] for limit, one in zip(limits, seconds, strict=True)])
        for name, work in works.items()
    }
    return {
        "bandwidth_gb_s": rounded(np.median([limit["bandwidth"] for limit in limits]) / 1e9),
        "peak_gflop_s": {kind: rounded(np.median([limit[kind] for limit in limits]) / 1e9) for kind in PEAKS},
        "share_of_roof": shares,
        "points": points,
        "table": table(
            ("", "numbers", "flop/byte", "GFLOP/s", "ms", "of the roof (95 %)"),
            [
                (
                    name,
                    point["numbers"],
                    f"{point['flops_per_byte']:.2f}",
                    f"{point['gflop_s']:.1f}",
                    f"{point['ms']:.2f}",
                    spread(shares[name]),
                )
                for name, point in points.items()
            ],
        ),
        "setting": {"rounds": rounds, "model": MODEL, "context": CONTEXT},
    }


def least_seconds(work: Work, limits: dict[str, float]) -> float:
    """What the roof allows: limits are bytes a second, and operations a second by kind."""
    return max(work.flops / limits[work.kind], work.bytes / limits["bandwidth"])


def peak(kind: str) -> float:
    """Operations a second of a large square product; the best of a few."""
    numbers, sums = PEAKS[kind]
    x, w = (on_device(np.ones((SIDE, SIDE), numbers)) for _ in range(2))
    product = jax.jit(
        partial(jax.lax.dot_general, dimension_numbers=(((1,), (1,)), ((), ())), preferred_element_type=sums)
    )
    product(x, w).block_until_ready()
    return 2 * SIDE**3 / min(seconds_of(lambda: product(x, w)) for _ in range(5))


def seconds_of(call: Callable[[], Any]) -> float:
    """Of a call, until its result is there."""
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


def kernel_turn(kernel: Kernel) -> Turn:
    """The work of an op, and a function that gives the seconds of one call on arguments that no cache holds."""
    op = OPS[kernel.op]
    assert isinstance(op, Op)
    case = Case("of a model", kernel.sizes, kernel.options)
    arrays = cast(op, op.draw(case, np.random.default_rng(0)), "float32")
    program = jax.jit(partial(kernel.form, **kernel.options))
    given = [arrays.pop(name) for name in op.required]
    out = jax.eval_shape(program, *given, **arrays)
    size = sum(one.nbytes for one in (*given, *arrays.values())) + sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(out)
    )
    copies = [
        jax.device_put([one.copy() for one in given]) for _ in range(min(MOST_COPIES, math.ceil(COLD / size)))
    ]

    def turn() -> float:
        return seconds_of(lambda: [program(*copy, **arrays) for copy in copies]) / len(copies)

    return Work(kernel.flops(**kernel.sizes), size, kernel.kind), turn


def step_turns() -> dict[str, Turn]:
    """Whole steps of the model: decoding one text and several, in float32 and W8A8, and reading a prompt."""
    plain, (coded, _) = minillm.load(MODEL), minillm.load(MODEL).quantize("w8a8")
    named = {"step, 1 text": (plain, 1, 1), "step, 8 texts": (plain, 8, 1), "step, 32 texts": (plain, 32, 1)}
    named |= {"W8A8 step, 1 text": (coded, 1, 1), "W8A8 step, 8 texts": (coded, 8, 1)}
    named |= {"prompt of 512": (plain, 1, 512), "W8A8 prompt of 512": (coded, 1, 512)}
    return {
        name: (work_of(lm, b, t, "int8" if lm is coded else "float32"), partial(step_seconds, lm, b, t))
        for name, (lm, b, t) in named.items()
    }


def work_of(lm: LM, b: int, t: int, kind: str) -> Work:
    """Each of b texts takes in t tokens: all weights once, and what was remembered; after CONTEXT if t is 1."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(lm.model))
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(lm.model))
    head = lm.config.v * lm.config.d
    flops = 2 * b * (t * (parameters - head) + head)  # logits are asked for at the last token only
    return Work(flops, weights + lm.model.state_bytes(StateSpec(slots=b, max_len=CONTEXT)), kind)


def step_seconds(lm: LM, b: int, t: int) -> float:
    """Median seconds of b texts taking in t tokens each, the last of which is number CONTEXT in its text."""
    model, greedy = lm.model, new_sampler(temperature=0, seed=0)
    tokens, n = on_device(np.ones((b, t), np.int32)), on_device(np.full(b, t, np.int32))
    start = on_device(np.full(b, CONTEXT - t, np.int32))
    state, seconds = model.init_state(StateSpec(slots=b, max_len=CONTEXT)), []
    for _ in range(STEPS if t == 1 else 3):
        began = time.perf_counter()
        state, _, drawn = advance(model, state, None, greedy, tokens, start, n)
        drawn.block_until_ready()
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[1:]))  # the first one touches fresh memory


def plot(report: dict[str, Any], path: Path) -> None:
    """Operations a second against operations a byte, under the roof; nothing without matplotlib."""
    plt = pyplot()
    if plt is None:
        return
    figure, axis = plt.subplots(figsize=(9.5, 5.4), layout="constrained")
    points, bandwidth = report["points"], report["bandwidth_gb_s"]
    x = np.geomspace(0.08, 2000, 200)
    for kind, most in report["peak_gflop_s"].items():
        axis.plot(x, np.minimum(most, x * bandwidth), color="black", linewidth=1.2)
        axis.annotate(f"{kind}: {most:,.0f} GFLOP/s", (x[-1], most), ha="right", va="bottom", fontsize=8)
    slope_at = 0.8
    axis.annotate(
        f"memory: {bandwidth:.0f} GB/s",
        (slope_at, slope_at * bandwidth),
        textcoords="offset points",
        xytext=(-6, 6),
        ha="right",
        fontsize=8,
    )
    for number, (name, point) in enumerate(points.items(), 1):
        whole = name not in KERNELS
        place = (point["flops_per_byte"], point["gflop_s"])
        mark = {"marker": "s" if whole else "o", "color": "tab:red" if whole else "tab:blue"}
        filled = {"markerfacecolor": "white"} if point["numbers"] == "int8" else {}
        axis.plot(*place, linestyle="", markersize=6, label=f"{number}  {name}", **mark, **filled)
        axis.annotate(str(number), place, textcoords="offset points", xytext=(6, -3), fontsize=8)
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="operations a byte (of arguments and results)",
        ylabel="GFLOP/s",
        title="squares: whole steps of SmolLM2-135M; hollow: int8",
    )
    axis.title.set_fontsize(10)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False, fontsize=8, handletextpad=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
