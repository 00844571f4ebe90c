"""`minillm info`: what is in a checkpoint."""

import math
import re

import click


@click.command("info", short_help="Show what is in a checkpoint.")
@click.argument("model")
def command(model: str) -> None:
    """Show the tensors, architecture, parameters and memory of MODEL, a name, a .gguf file or a folder.

    \b
    Example:
      minillm info smollm2-135m
    """
    from ..checkpoint.loader import open_checkpoint
    from ..lm import find_model

    checkpoint = open_checkpoint(find_model(model))
    checkpoint.shapes()  # a file that would not load is not described as if it did
    config, source = checkpoint.config, checkpoint.source
    parameters = sum(math.prod(source.shape(name)) for name in source.names())
    stored = sum(source.nbytes(name) for name in source.names())
    rows = [
        ("file", source.where),
        ("architecture", f"{config.arch}, {config.n_layers} layers"),
        ("sizes", f"d {config.d}, h {config.h}, g {config.g}, k {config.k}, f {config.f}, v {config.v}"),
        ("context", f"{config.context} tokens, RoPE base {config.rope_theta:g}"),
        ("head", "tied to the embedding" if config.tied else "a matrix of its own"),
        ("parameters", f"{parameters:,}"),
        ("tensors", f"{size(stored)} on disk, {size(4 * parameters)} in memory as float32"),
        ("KV cache", f"{size(2 * 4 * config.n_layers * config.g * config.k)} a token as float32"),
    ]
    click.echo(f"{'tensor':<40}{'shape':>16}{'type':>7}{'bytes':>14}")
    for name in sorted(source.names(), key=natural):
        shape = " x ".join(str(n) for n in source.shape(name))
        click.echo(f"{name:<40}{shape:>16}{source.dtype(name):>7}{source.nbytes(name):>14,}")
    click.echo()
    for name, value in rows:
        click.echo(f"{name:<14}{value}")


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
