"""What models would need, and the most they could do, on devices that are not here: `python -m bench.planning`.

Nothing is run or measured: these are plans as of `minillm compile --plan`, arithmetic on data sheets. First, models
of one shape (Llama 3 8B's) that are alike but for what they remember, on one H100, against the length of the text:
where do they part ways? Then the models in configs/: how many devices hold them, with a text of 4,096 tokens and of
a million. Writes results/planning.json and, with the `plots` extra, results/planning.png.
"""

import math
from pathlib import Path
from typing import Any

import click

from minillm.archs import find_hf
from minillm.compile.devices import DEVICES
from minillm.compile.plan import count_at, roofline
from minillm.compile.steps import Work, bytes_a_device, config_in, narrowed, on_devices, shapes_of, state_of, traced
from minillm.config import Config, Fields
from minillm.errors import UserError

from .growth import SIZES as SMALL
from .report import RESULTS, pyplot, rounded, show_table, table, where_and_what, write

CONTEXTS = tuple(4**power for power in range(5, 11))  # to 1,048,576
BATCH, DEVICE, DTYPE = 16, DEVICES["h100"], "bfloat16"
CONFIGS = Path(__file__).parent / "configs"
TARGETS, TEXTS = ("h100", "tpu-v5p", "tpu-v5e"), (4096, 1 << 20)
MOST = 256  # devices

SIZES: dict[str, Any] = SMALL | {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": CONTEXTS[-1],
    "tie_word_embeddings": False,
}
LATENT = {
    "model_type": "deepseek_v2",
    "q_lora_rank": None,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "num_key_value_heads": 32,
    "first_k_dense_replace": 32,
    "n_routed_experts": 8,
    "moe_intermediate_size": 64,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "routed_scaling_factor": 1.0,
}
HYBRID = {
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
}
MODELS: dict[str, dict[str, Any]] = {
    "transformer": SIZES | {"model_type": "llama"},
    "window of 4,096": SIZES | {"model_type": "mistral", "sliding_window": 4096},
    "latent attention": SIZES | LATENT,
    "hybrid, 1 layer in 8 attends": SIZES | HYBRID,
}
MAMBA = "falcon-mamba-7b"


@click.command(help=__doc__)
def main() -> None:
    alike = {name: config_of(values) for name, values in MODELS.items()}
    alike["Mamba"] = config_in(CONFIGS / f"{MAMBA}.json")
    report = {
        "one device": {name: grown(config) for name, config in alike.items()},
        "setting": {"contexts": CONTEXTS, "batch": BATCH, "device": DEVICE.name, "dtype": DTYPE},
        "table": held(),
        **where_and_what(),
    }
    show_table(report["table"])
    write("planning", report)
    plot(report, RESULTS / "planning.png")


def config_of(values: dict[str, Any]) -> Config:
    """The config of a config.json's entries."""
    return find_hf(values["model_type"], "bench.planning").config_from_hf(Fields(values, "bench.planning"))


def grown(config: Config) -> dict[str, Any]:
    """Memory of a sequence by context, and the bound of a batch's tokens a second where it fits."""
    model = narrowed(shapes_of(config), DTYPE)
    weights, memory, speed = bytes_a_device(model), [], []
    for context in CONTEXTS:
        work = Work(BATCH, context)
        state = bytes_a_device(state_of(model, work, None))
        memory.append(state // BATCH)
        fits = weights + state <= DEVICE.memory
        speed.append(rounded(bound(model, work, None, DEVICE.name)) if fits else None)
    return {"weight_bytes": weights, "sequence_bytes": memory, "tokens_s_at_most": speed}


def bound(model: Any, work: Work, place: Any, target: str) -> float:
    """Decoded tokens a second of all sequences together, at most."""
    cost = count_at(traced(model, work, 1, place), work, work.context - 1, 1)
    return work.batch / max(roofline(cost, DEVICES[target]).values())


def held() -> dict[str, Any]:
    """For every model in configs/ and every length of text the devices that hold one sequence."""
    rows = []
    for path in sorted(CONFIGS.glob("*.json")):
        config = config_in(path)
        for context in TEXTS:
            rows.append([path.stem, f"{context:,}", *(fewest(config, context, target) for target in TARGETS)])
    return table(
        ["model in bfloat16", "tokens", *(f"{target}: devices, tokens/s at most" for target in TARGETS)], rows
    )


def fewest(config: Config, context: int, target: str) -> str:
    """How many devices hold a sequence, each a part of every matrix, and how fast they could decode it.

    None may: keys and values are divided as far as there are KV heads; latents, which all heads read, not at all.
    """
    device, shapes, work = DEVICES[target], narrowed(shapes_of(config), DTYPE), Work(1, context)
    for devices in (2**power for power in range(int(math.log2(MOST)) + 1)):
        mesh = f"model={devices}" if devices > 1 else None
        try:
            model, _, place = on_devices(shapes, config, target, mesh, real=False)
        except UserError:  # more than there are heads
            return "none"
        if bytes_a_device(model) + bytes_a_device(state_of(model, work, place)) <= device.memory:
            return f"{devices}, {bound(model, work, place, target):,.0f}"
    return "none"


def plot(report: dict[str, Any], path: Path) -> None:
    """Memory and bound against context, one line a model; nothing without matplotlib."""
    plt = pyplot()
    if plt is None:
        return
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for name, found in report["one device"].items():
        (line,) = left.plot(
            CONTEXTS, [one / 1e9 for one in found["sequence_bytes"]], "o-", label=name, markersize=4
        )
        speed = [one for one in found["tokens_s_at_most"] if one is not None]
        right.plot(CONTEXTS[: len(speed)], speed, "o-", color=line.get_color(), markersize=4)
        if len(speed) < len(CONTEXTS):
            right.plot(CONTEXTS[len(speed) - 1], speed[-1], "x", color=line.get_color(), markersize=11)
    left.set(title="memory of one sequence", ylabel="GB", yscale="log")
    right.set(title=f"{BATCH} sequences on one H100 (×: more does not fit)", ylabel="tokens/s, at most")
    right.set_ylim(0)
    for axes in (left, right):
        axes.set(xscale="log", xlabel="context in tokens")
        axes.set_xticks(CONTEXTS, [f"{context:,}" for context in CONTEXTS])
        axes.minorticks_off()
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
