"""What few bits cost and gain: `python -m bench.quality [MODEL]`.

Each recipe beside the model as it was stored: bits a weight, bytes, perplexity, divergence, the top token, speed,
and for the bundled models the reliability of `weights.check`: of recipes written for unseen titles, how many are
well formed, and how much of what they list they use. Speeds are ratios within a round to the same model in float32.
Writes results/quality-MODEL.json after each recipe, from which a run that was stopped goes on, and with the `plots`
extra results/quality-MODEL.png.
"""

import json
import statistics
from pathlib import Path
from typing import Any

import click
import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import minillm
from minillm.errors import UserError
from minillm.evaluate import quality
from minillm.folders import bundled_models
from minillm.lm import LM
from minillm.quant.quantised import bits_a_weight
from minillm.quant.recipes import PRODUCTS
from minillm.texts import evaluation, held_out
from weights.check import judge, recipe

from .report import RESULTS, pyplot, where_and_what, write
from .timing import wait_for_quiet

GGUF = "q8_0 q6_k q5_k q4_k q4_0 q3_k q2_k iq4_nl".split()
OTHERS = """
    int8 fp8 mxfp8 mxfp6 nf4 nvfp4 mxfp4 int4-g32 int4-g32-affine int4 awq:int4-g32 gptq:int4-g32 awq:int4 gptq:int4
    imatrix:q4_k imatrix:q2_k auto:5.5 auto:4.5 auto:3.4375 w8a8 smooth:w8a8 fp8-a8 mxfp8-a8 w4a8 nvfp4-a4 mxfp4-a4
    int2-g32 ternary
""".split()
STORED = {"smollm2-135m": "source already Q4_1"}  # what a model lost before it came here
PROMPT, NEW = 256, 32  # tokens of a turn of the clock


@click.command(help=__doc__)
@click.argument("name", metavar="[MODEL]", default="tiny-transformer")
@click.option("--recipe", "recipes", multiple=True, help="Only this one; may be given more than once.")
@click.option("--documents", default=40, show_default=True, type=click.IntRange(1), help="Texts to measure on.")
@click.option("--titles", default=40, show_default=True, type=click.IntRange(0, 122), help="Recipes to write.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Turns of the clock.")
def main(name: str, recipes: tuple[str, ...], documents: int, titles: int, rounds: int) -> None:
    lm, result = minillm.load(name), f"quality-{name}"
    path = RESULTS / f"{result}.json"
    titles = titles if name in bundled_models() else 0  # others were not made for this
    setting = {"model": name, "documents": documents, "titles": titles, "rounds": rounds, "window": window_of(lm)}
    report: dict[str, Any] = {"setting": setting, "stored": STORED.get(name), "recipes": {}}
    if path.exists() and (before := json.loads(path.read_text()))["setting"] == setting:
        report = before
    report |= where_and_what()
    report.setdefault("plain", {"bytes": bytes_of(lm), **reliability(lm, titles)})
    rows = report["recipes"]
    for one in recipes or (*GGUF, *OTHERS):
        if one not in rows:
            rows[one] = measure(lm, one, documents, titles)
            write(result, report)
            print(one, rows[one], flush=True)
    for one, row in rows.items():  # clocks come last: they want a quiet machine
        if "refused" not in row and "speed" not in row:
            row["speed"] = speed(lm, lm.quantize(one)[0], rounds)
            write(result, report)
            print(one, row["speed"], flush=True)
    show(report)
    plot(report, path.with_suffix(".png"))


def measure(lm: LM, recipe_name: str, documents: int, titles: int) -> dict[str, Any]:
    """All figures of a recipe but its speed; only the reason if the model cannot take it."""
    assert lm.tokenizer is not None
    try:
        other, changes = lm.quantize(recipe_name)
    except UserError as error:
        return {"refused": str(error)}
    found = quality(other.model, lm.tokenizer, evaluation()[:documents], window_of(lm), lm.model)
    figures = {name: [rounded(one) for one in figure] for name, figure in found.items()}
    return {
        "bits": rounded(bits_a_weight(changes)),
        "bytes": bytes_of(other),
        "otherwise": sum(change.remark is not None or change.recipe is None for change in changes),
        **figures,
        **reliability(other, titles),
    }


def rounded(figure: float | None) -> float | None:
    """Four significant digits."""
    return None if figure is None else float(f"{figure:.4g}")


def window_of(lm: LM) -> int:
    """Tokens that are seen at once."""
    return min(512, lm.config.context)


def bytes_of(lm: LM) -> int:
    """Of all arrays in memory."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(lm.model))


def reliability(lm: LM, titles: int) -> dict[str, Any]:
    """Shares of recipes for unseen titles that are well formed, and of listed ingredients that are used."""
    if not titles:
        return {}
    verdicts = [
        judge(*recipe(lm, document.title, seed)) for seed, document in enumerate(held_out("recipes")[:titles])
    ]
    listed, used = (sum(getattr(verdict, name) for verdict in verdicts) for name in ("listed", "used"))
    well = sum(verdict.well_formed for verdict in verdicts) / titles
    return {"well_formed": rounded(well), "ingredients_used": rounded(used / max(listed, 1))}


def speed(plain: LM, other: LM, rounds: int) -> dict[str, Any]:
    """How many times as fast as in float32: median, least and most of the rounds."""
    prompt = (np.arange(PROMPT) % (plain.config.v - 10) + 5).tolist()
    ratios: dict[str, list[float]] = {"decode": [], "prefill": []}
    for number in range(rounds + 1):
        wait_for_quiet()
        timings = [lm.generate(prompt, max_tokens=NEW, temperature=0, seed=0).timings for lm in (plain, other)]
        if number:  # the first one compiles
            for name, found in ratios.items():
                one, two = (timing[f"{name}_tok_s"] for timing in timings)
                if one and two:
                    found.append(two / one)
    return {
        name: [rounded(f(found)) for f in (statistics.median, min, max)] for name, found in ratios.items() if found
    }


def show(report: dict[str, Any]) -> None:
    """Print the table."""
    setting, plain = report["setting"], report["plain"]
    table = Table(
        "recipe", "bits", "MB", "ppl / plain", "KLD", "p99", "same top", "well formed", "used", "decode x"
    )
    rows = {name: row for name, row in report["recipes"].items() if "refused" not in row}
    for name, row in sorted(rows.items(), key=lambda one: one[1]["kld_mean"][0]):
        task = [f"{row[k]:.0%}" if k in row else "" for k in ("well_formed", "ingredients_used")]
        fast = row["speed"].get("decode", [float("nan")])[0]
        worse = np.exp(row["ln_perplexity_ratio"][0])
        figures = (
            f"{worse:.4f}",
            f"{row['kld_mean'][0]:.5f}",
            f"{row['kld_p99'][0]:.4f}",
            f"{row['same_top'][0]:.2%}",
        )
        table.add_row(name, f"{row['bits']:.2f}", f"{row['bytes'] / 1e6:.1f}", *figures, *task, f"{fast:.2f}")
    Console(width=120).print(table)
    task = f", well formed {plain['well_formed']:.0%}" if "well_formed" in plain else ""
    print(f"{setting['model']} in float32: {plain['bytes'] / 1e6:.1f} MB{task}; {setting['documents']} documents")
    for name, row in report["recipes"].items():
        if "refused" in row:
            print(f"{name}: {row['refused']}")
    if report["stored"]:
        print(report["stored"])


def plot(report: dict[str, Any], path: Path) -> None:
    """Divergence against size; nothing without matplotlib."""
    plt = pyplot()
    if plt is None:
        return
    rows = {name: row for name, row in report["recipes"].items() if "refused" not in row}
    kinds = {
        "types of GGUF files": [name for name in GGUF if name in rows],
        "calibrated or mixed": [name for name in OTHERS if name in rows and ":" in name and name != "smooth:w8a8"],
        "x rounded too": [name for name in rows if name.rpartition(":")[2] in PRODUCTS],
    }
    kinds["others"] = [name for name in rows if not any(name in one for one in kinds.values())]
    figure, axis = plt.subplots(figsize=(9, 5.6), layout="constrained")
    for (kind, names), mark in zip(kinds.items(), "os^D", strict=True):
        sizes, klds = ([rows[name]["bits"] for name in names], [rows[name]["kld_mean"][0] for name in names])
        axis.plot(sizes, klds, mark, label=kind, markersize=6)
        for name, x, y in zip(names, sizes, klds, strict=True):
            axis.annotate(name, (x, y), textcoords="offset points", xytext=(5, 3), fontsize=7)
    stored = f" ({report['stored']})" if report["stored"] else ""
    axis.set(
        yscale="log",
        xlabel="bits a weight, scales included",
        ylabel="mean KL divergence from float32, nats a token",
        title=f"{report['setting']['model']}{stored}",
    )
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
