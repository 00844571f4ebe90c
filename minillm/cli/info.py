"""`minillm info`: what is in a checkpoint."""

import math
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ..config import Config
    from ..model import Model


@click.command("info", short_help="Show what is in a checkpoint.")
@click.argument("model")
def command(model: str) -> None:
    """Show the tensors, architecture, parameters and memory of MODEL, a name, a .gguf file or a folder.

    \b
    Example:
      minillm info smollm2-135m
    """
    import jax

    from ..checkpoint.loader import open_checkpoint
    from ..lm import find_model

    checkpoint = open_checkpoint(find_model(model))
    shapes = checkpoint.shapes()  # a file that would not load is not described as if it did
    config, source = checkpoint.config, checkpoint.source
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))  # a file may hold more
    stored = sum(source.nbytes(name) for name in source.names())
    rows = [
        ("file", source.where),
        ("architecture", f"{config.arch}, {len(config.layers)} layers"),
        ("sizes", f"d {config.d}, v {config.v}"),
        *((name, text) for name, text in layers(config)),
        ("context", f"{config.context} tokens"),
        ("head", "tied to the embedding" if config.tied else "a matrix of its own"),
        ("parameters", f"{parameters:,}"),
        ("tensors", f"{size(stored)} on disk, {size(4 * parameters)} in memory as float32"),
        ("memory", remembered(shapes, config.context)),
    ]
    click.echo(f"{'tensor':<40}{'shape':>16}{'type':>7}{'bytes':>14}")
    for name in sorted(source.names(), key=natural):
        shape = " x ".join(str(n) for n in source.shape(name))
        click.echo(f"{name:<40}{shape:>16}{source.dtype(name):>7}{source.nbytes(name):>14,}")
    click.echo()
    for name, value in rows:
        click.echo(f"{name:<17}{value}")


def layers(config: "Config") -> Iterator[tuple[str, str]]:
    """Each kind of block, with the layers that have it."""
    kinds: dict[Any, list[int]] = {}
    for i, layer in enumerate(config.layers):
        for spec in layer:
            kinds.setdefault(spec, []).append(i)
    for spec, where in kinds.items():
        some = "" if len(where) == len(config.layers) else f" (layer{'s' * (len(where) > 1)} {spans(where)})"
        words = re.findall(r"[A-Z]+[a-z\d]*", type(spec).__name__.removesuffix("Spec"))
        yield " ".join(words).lower(), choices(spec) + some


def choices(spec: Any) -> str:
    """What a block's description says, where it is not the default."""
    parts = []
    for one in fields(spec):
        value = getattr(spec, one.name)
        if one.name == "rope":
            parts.append(turned(value))
        elif isinstance(value, float) and value != one.default:
            parts.append(f"{one.name} {value:.4g}")
        elif value != one.default:
            parts.append(one.name if value is True else f"{one.name} {value}")
    return ", ".join(parts)


def turned(rope: Any) -> str:
    """Which positions a block knows."""
    if rope is None:
        return "no rope"
    kind = "" if rope.recipe.kind == "default" else f" {rope.recipe.kind}"
    return f"rope{kind} of base {rope.recipe.theta:g} on {2 * len(rope.freqs)} channels"


def spans(numbers: list[int]) -> str:
    """0, 1, 2, 5 -> 0-2, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def remembered(shapes: "Model", context: int) -> str:
    """What a sequence costs in memory: at the whole context, and for each token more."""
    from ..cache import StateSpec

    at_end, before = (shapes.state_bytes(StateSpec(1, length)) for length in (context, max(context - 1, 1)))
    return f"{size(at_end)} for {context} tokens, {size(at_end - before)} for one more, as float32"


def natural(name: str) -> list[str | int]:
    """A sort key by which layer 10 comes after layer 9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def size(nbytes: float) -> str:
    """Bytes for people, in powers of ten."""
    for unit in ("B", "kB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.2f} GB"
