"""Write the card of a bundled model from what is measured: `python -m weights.card tiny-transformer`.

Needs the `train` and `plots` extras, and weights/runs/NAME for the curve of the loss.
"""

import json
from pathlib import Path

import click
import jax
import numpy as np

import minillm
from minillm.blocks.moe import MoE
from minillm.lm import LM
from minillm.texts import held_out

from .check import TEMPERATURE, acceptance, bits_per_byte, measure
from .experts import expert_use, plot_experts
from .train import COPIES, MODELS, PIECES, RECIPES, RUNS, TOKENS

ABOUT = {
    "tiny-transformer": "A Llama: attention and SwiGLU.",
    "tiny-moe": "A Mixtral: tiny-transformer with eight small experts a layer, of which three serve a token.",
    "tiny-mamba": "A Mamba: one selective state space a layer, no attention.",
    "tiny-hybrid": "A Jamba without experts: two layers of six attend, the others are Mamba.",
    "tiny-draft": "A Llama a tenth as large, taught by tiny-transformer, to draft for it.",
}
DRAFTS = 40  # recipes on which drafts are tried
CARD = (Path(__file__).parent / "card.md").read_text()


def rows_of_a_draft(name: str, lm: LM) -> str:
    """How a model drafts for its teacher, and, after `weights.train NAME --plain`, what the teacher gained it."""
    teacher, plain = RECIPES[name].teacher, RUNS / f"{name}-plain" / "model"
    if teacher is None:
        return ""
    target = minillm.load(MODELS / teacher)
    rows = [f"| of its drafts {teacher} accepts, on {DRAFTS} recipes | {acceptance(lm, target, DRAFTS):.1%} |"]
    if plain.exists():
        alone = minillm.load(plain)
        bits = ", ".join(f"{source} {bits_per_byte(alone, held_out(source)):.3f}" for source in COPIES)
        accepted = f"{acceptance(alone, target, DRAFTS):.1%} accepted"
        rows.append(f"| the same trained without its teacher | {accepted}; bits per byte {bits} |")
    return "\n".join(rows) + "\n"


def rows_of_experts(lm: LM, folder: Path) -> str:
    """How evenly experts are used, and a picture of it, for a model that has some."""
    if not any(isinstance(block, MoE) for block in lm.model.blocks):
        return ""
    use = expert_use(lm)
    plot_experts(use, folder / "experts.png")
    both = np.mean([*use.values()], axis=0)
    differs = np.abs(use["recipes"] - use["scripture"]).sum(axis=1) / 2
    return (
        f"| least and most used expert of a layer, both texts alike | {both.min():.1%}, {both.max():.1%} "
        f"of choices ({1 / both.shape[1]:.1%} if even) |\n"
        f"| choices that fall elsewhere in scripture than in recipes, by layer "
        f"([picture](experts.png)) | {', '.join(f'{share:.0%}' for share in differs)} |\n"
    )


def samples(lm: LM, unseen: str) -> str:
    """Three texts by temperature 0.7, with what is needed to have them again."""
    prompts = ["Recipe: Tomato Soup", f"Recipe: {unseen}", "And it came about"]
    blocks = []
    for seed, prompt in enumerate(prompts):
        out = lm.generate(prompt, max_tokens=256, temperature=TEMPERATURE, seed=seed)
        command = f'minillm generate --model NAME --temperature {TEMPERATURE} --seed {seed} "{prompt}"'
        blocks.append(f"`{command}`\n\n```\n{prompt}{out.text}\n```")
    return "\n\n".join(blocks)


def plot(losses: list[float], file: Path) -> None:
    """Nats a token by step, and their running mean: recipes are far below scripture, so single steps scatter."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    width = max(len(losses) // 30, 1)
    mean = np.convolve(losses, np.ones(width) / width, mode="valid")
    figure, axes = pyplot.subplots(figsize=(6, 3), layout="constrained")
    axes.plot(losses, ".", markersize=1, color="#c0c8d0")
    axes.plot(np.arange(width - 1, len(losses)), mean, color="#205080")
    axes.set(xlabel="step", ylabel="nats a token", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)


@click.command(help=__doc__)
@click.argument("name", type=click.Choice(list(RECIPES)))
def main(name: str) -> None:
    """Measure, plot, write."""
    lm, recipe, folder = minillm.load(MODELS / name), RECIPES[name], MODELS / name
    found, parameters = measure(lm, 100), sum(leaf.size for leaf in jax.tree.leaves(lm.model))
    plot(json.loads((RUNS / name / "loss.json").read_text()), folder / "loss.png")
    card = CARD.format(
        name=name,
        about=ABOUT[name],
        parameters=parameters,
        megabytes=(folder / "model.safetensors").stat().st_size / 1e6,
        recipes=found["bits_per_byte"]["recipes"],
        scripture=found["bits_per_byte"]["scripture"],
        samples=found["samples"],
        temperature=TEMPERATURE,
        well_formed=found["well_formed"],
        used=found["ingredients_used"],
        copied=found["longest_copied_words"],
        taught=rows_of_a_draft(name, lm) + rows_of_experts(lm, folder),
        steps=recipe.steps,
        tokens=TOKENS,
        recipe_copies=COPIES["recipes"],
        rate=recipe.rate,
        teacher=f"; four fifths of the loss are {recipe.teacher}'s word" if recipe.teacher else "",
        pieces=PIECES,
        texts=samples(lm, held_out("recipes")[0].title).replace("--model NAME", f"--model {name}"),
    )
    (folder / "README.md").write_text(card)
    click.echo(json.dumps(found))


if __name__ == "__main__":
    main()
