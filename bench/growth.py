"""Time and memory of one decoding step against the size of everything: `python -m bench.growth`.

Small random models in float32. Against the length of the text, they are alike but for what they remember: keys and
values of all tokens or of the last 1,024, one latent a token, a state of fixed size, or a mixture. Against the
batch, the depth, the vocabulary and the number of experts, one of them grows while all else stays. A step reads
all weights and all it remembers: its time should grow like those bytes (experts: like those of the experts that are
chosen). What the first step costs is told beside it: tracing and compiling, with nothing kept from before. Writes
results/growth.json and, with the `plots` extra, results/growth.png.
"""

import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import jax
import numpy as np

import minillm
from minillm.cache import StateSpec
from minillm.generate import advance
from minillm.lm import LM
from minillm.sampling import new_sampler
from minillm.xla import Programs, on_device

from .report import RESULTS, pyplot, rounded, show_table, table, where_and_what, write
from .timing import rotated, wait_for_quiet

CONTEXTS = (256, 1024, 4096, 16384, 65536)
CONTEXT = 256  # of what does not grow with it
BATCHES = (1, 2, 4, 8, 16, 32)
DEPTHS = (2, 4, 8, 16, 32)
VOCABULARIES = (1024, 4096, 16384, 65536)
EXPERTS = (2, 4, 8, 16, 32)
STEPS = 12

SIZES: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 4096,
    "max_position_embeddings": CONTEXTS[-1],
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
}
STATE_SPACE: dict[str, Any] = {
    "hidden_size": 512,
    "num_hidden_layers": 16,
    "vocab_size": 4096,
    "tie_word_embeddings": True,
    "layer_norm_epsilon": 1e-5,
}
TRANSFORMER = SIZES | {"model_type": "llama"}
MAMBA = STATE_SPACE | {"model_type": "mamba", "state_size": 16}
MIXTURE = SIZES | {"model_type": "mixtral", "intermediate_size": 352, "num_experts_per_tok": 2}
MODELS: dict[str, dict[str, Any]] = {
    "transformer": TRANSFORMER,
    "window of 1,024": SIZES | {"model_type": "mistral", "sliding_window": 1024},
    "latent attention": SIZES
    | {
        "model_type": "deepseek_v2",
        "kv_lora_rank": 128,
        "q_lora_rank": None,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "v_head_dim": 64,
        "num_key_value_heads": 8,
        "first_k_dense_replace": SIZES["num_hidden_layers"],
        "n_routed_experts": 8,
        "moe_intermediate_size": 64,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "routed_scaling_factor": 1.0,
    },
    "Mamba": MAMBA,
    "Mamba-2": STATE_SPACE
    | {"model_type": "mamba2", "state_size": 64, "num_heads": 16, "head_dim": 64, "n_groups": 1},
    "hybrid, 1 layer in 8 attends": SIZES
    | {
        "model_type": "jamba",
        "num_experts": 1,
        "num_experts_per_tok": 1,
        "expert_layer_period": 1,
        "expert_layer_offset": 0,
        "attn_layer_period": 8,
        "attn_layer_offset": 4,
        "mamba_d_state": 16,
        "mamba_expand": 2,
        "mamba_d_conv": 4,
    },
}


Program = Callable[..., Any]


class Step(NamedTuple):
    """A step to time: of which model, for how many texts at once, with how many tokens in memory."""

    config: dict[str, Any]
    batch: int = 1
    context: int = CONTEXT


class Line(NamedTuple):
    """What grows along it, over which sizes, and the step of each."""

    grows: str
    sizes: tuple[int, ...]
    step: Callable[[int], Step]


def lines(longest: int) -> dict[str, Line]:
    """All that is measured, by name; no context above `longest`."""
    contexts = tuple(context for context in CONTEXTS if context <= longest)
    found = {
        name: Line("context", contexts, lambda size, config=config: Step(config, context=size))
        for name, config in MODELS.items()
    }
    found |= {
        f"{name}, batch": Line("batch", BATCHES, lambda size, config=config: Step(config, batch=size))
        for name, config in (("transformer", TRANSFORMER), ("Mamba", MAMBA))
    }
    one = {
        "layers": Line("depth", DEPTHS, lambda size: Step(TRANSFORMER | {"num_hidden_layers": size})),
        "tokens": Line("vocabulary", VOCABULARIES, lambda size: Step(TRANSFORMER | {"vocab_size": size})),
        "experts": Line("experts", EXPERTS, lambda size: Step(MIXTURE | {"num_local_experts": size})),
        "experts, 8 texts": Line("experts", EXPERTS, lambda size: Step(MIXTURE | {"num_local_experts": size}, 8)),
    }
    return found | one


@click.command(help=__doc__)
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Turns of each.")
@click.option("--longest", default=CONTEXTS[-1], show_default=True, help="No context above this.")
def main(rounds: int, longest: int) -> None:
    jax.config.update("jax_enable_compilation_cache", False)  # what compiling costs is measured
    report = measure(lines(longest), rounds)
    show_table(report["table"])
    write("growth", report)
    plot(report, RESULTS / "growth.png")


def measure(asked: dict[str, Line], rounds: int) -> dict:
    """Each line's models one after the other, the sizes of a line by turns: they are what is compared."""
    grown = {
        name: {"grows": line.grows, "sizes": [*line.sizes], **measured(line, rounds)}
        for name, line in asked.items()
    }
    return {
        "lines": grown,
        "table": table(
            (
                "",
                "grows",
                "from",
                "to",
                "bytes of a step x",
                "its time x",
                "ms, first",
                "compiling, s, first",
                "last",
            ),
            [row(name, one) for name, one in grown.items()],
        ),
        "setting": {"rounds": rounds, "steps": STEPS, "dtype": "float32"},
        **where_and_what(),
    }


def row(name: str, one: dict[str, Any]) -> tuple[str, ...]:
    """A line in the table."""
    compiling = [f"{one['compile_s'][place]:.1f}" for place in (0, -1)]
    sizes = [f"{one['sizes'][place]:,}" for place in (0, -1)]
    grown = [f"{one[what][-1]:.2f}" for what in ("growth_of_bytes", "growth")]
    return (name, one["grows"], *sizes, *grown, f"{one['ms'][0]:.2f}", *compiling)


def measured(line: Line, rounds: int) -> dict[str, Any]:
    """Times and bytes of a line; growth compares turns of one round with its smallest size."""
    steps = {size: line.step(size) for size in line.sizes}
    models = opened(steps)
    programs = {size: compiled(models[size], step) for size, step in steps.items()}
    times: dict[int, list[float]] = {size: [] for size in steps}
    for number in range(rounds):
        wait_for_quiet()
        for size in rotated([*steps], number):
            times[size].append(step_seconds(programs[size][0], models[size], steps[size]))
    first, *_ = line.sizes
    growth = [np.array(there) / np.array(times[first]) for there in times.values()]
    moved = [bytes_of(models[size], step) for size, step in steps.items()]
    return {
        "state_bytes": [state_bytes(models[size], step) for size, step in steps.items()],
        "ms": [rounded(1e3 * statistics.median(there)) for there in times.values()],
        "growth": [rounded(np.median(one)) for one in growth],
        "growth_quartiles": [[rounded(end) for end in np.percentile(one, (25, 75))] for one in growth],
        "growth_of_bytes": [rounded(one / moved[0]) for one in moved],
        "compile_s": [rounded(seconds) for _, seconds in programs.values()],
    }


def opened(steps: dict[int, Step]) -> dict[int, LM]:
    """The model of each size, made once where it is the same."""
    made: dict[str, LM] = {}
    for step in steps.values():
        if repr(step.config) not in made:
            made[repr(step.config)] = minillm.init(step.config)
    return {size: made[repr(step.config)] for size, step in steps.items()}


def state_bytes(lm: LM, step: Step) -> int:
    """What is remembered of all texts."""
    return lm.model.state_bytes(StateSpec(slots=step.batch, max_len=step.context))


def bytes_of(lm: LM, step: Step) -> int:
    """What a step reads: memory and weights; of experts those that are chosen, if no two tokens choose the same."""
    experts = step.config.get("num_local_experts", 1)
    chosen = min(step.batch * step.config.get("num_experts_per_tok", 1), experts)
    sizes = [
        leaf.nbytes * chosen / experts if leaf.ndim == 3 else leaf.nbytes for leaf in jax.tree.leaves(lm.model)
    ]
    return int(sum(sizes)) + state_bytes(lm, step)


def arguments(step: Step, place: int) -> tuple[Any, ...]:
    """What `advance` is given after model, state and history: sampler, tokens, where, how many."""
    tokens, n = np.zeros((step.batch, 1), np.int32), np.ones(step.batch, np.int32)
    return new_sampler(temperature=0, seed=0), *map(on_device, (tokens, n * place, n))


def compiled(lm: LM, step: Step) -> tuple[Program, float]:
    """The program of a step, and the seconds from the call to it."""
    jax.clear_caches()  # of a layer that was traced for another size, too
    state = lm.model.init_state(StateSpec(slots=step.batch, max_len=step.context))
    with Programs() as programs:
        program = advance.lower(lm.model, state, None, *arguments(step, 0)).compile()
    return program, programs.seconds


def step_seconds(program: Program, lm: LM, step: Step) -> float:
    """Median seconds of a decoding step whose memory ends with `context` tokens."""
    state = lm.model.init_state(StateSpec(slots=step.batch, max_len=step.context))
    seconds = []
    for place in range(step.context - STEPS - 3, step.context):
        given = arguments(step, place)
        started = time.perf_counter()
        state, _, token = program(lm.model, state, None, *given)
        token.block_until_ready()
        seconds.append(time.perf_counter() - started)
    del state
    gc.collect()
    return statistics.median(seconds[3:])  # the first ones touch fresh memory


def plot(report: dict, path: Path) -> None:
    """A panel for what grows, a line a model; nothing without matplotlib."""
    plt = pyplot()
    if plt is None:
        return
    figure, panels = plt.subplots(4, 2, figsize=(9.5, 13), layout="constrained")
    (time_axis, memory_axis), (batch, depth), (vocabulary, experts), (compiling, legend) = panels
    axes = {"context": time_axis, "batch": batch, "depth": depth, "vocabulary": vocabulary, "experts": experts}
    colours: dict[str, str] = {}  # a model keeps its own
    for name, found in report["lines"].items():
        axis, sizes = axes[found["grows"]], found["sizes"]
        label = name.removesuffix(", batch")
        (line,) = axis.plot(sizes, found["ms"], "o-", label=label, color=colours.get(label), markersize=4)
        colours[label] = line.get_color()
        axis.plot(
            sizes, [found["ms"][0] * one for one in found["growth_of_bytes"]], ":", color=line.get_color(), lw=1
        )
        if found["grows"] == "context":
            memory_axis.plot(sizes, [one / 1e6 for one in found["state_bytes"]], "o-", markersize=4)
    for name, label in FIRSTS.items():
        found = report["lines"][name]
        compiling.plot(
            np.array(found["sizes"]) / found["sizes"][0], found["compile_s"], "o-", label=label, markersize=4
        )
    titles = {"context": "tokens of context", "batch": "texts at once", "depth": "layers"}
    titles |= {"vocabulary": "tokens of vocabulary", "experts": "experts, 2 of them chosen"}
    for grows, axis in axes.items():
        sizes = next(one["sizes"] for one in report["lines"].values() if one["grows"] == grows)
        finished(axis, titles[grows], "ms a step", sizes)
    finished(memory_axis, titles["context"], "MB of memory of one text", report["lines"]["transformer"]["sizes"])
    finished(compiling, "times its smallest size", "seconds to compile a step", (1, 4, 16, 64, 256))
    legend.axis("off")
    legend.legend(*time_axis.get_legend_handles_labels(), loc="upper left", frameon=False, title="against context")
    note = "dotted: as the bytes that a step reads grow\n(of experts, those that are chosen)"
    legend.text(0.03, 0.25, note, transform=legend.transAxes, fontsize=9)
    for axis in (batch, experts, compiling):
        axis.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


# Whose compile time is shown, one line for each thing that grows.
FIRSTS = {"transformer": "context", "transformer, batch": "batch", "layers": "layers", "tokens": "vocabulary"}
FIRSTS |= {"experts": "experts"}


def finished(axis: Any, x: str, y: str, ticks: Any) -> None:
    """An axis with names and numbers, both logarithmic."""
    axis.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.minorticks_off()
    low, high = axis.get_ylim()
    marks = [mark for mark in (a * 10.0**b for b in range(-2, 5) for a in (1, 2, 5)) if low <= mark <= high]
    axis.set_yticks(marks, [f"{mark:g}" for mark in marks])
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
