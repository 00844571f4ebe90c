"""`minillm info`: what is in a checkpoint."""

import math

import click


@click.command("info")
@click.argument("model")
def command(model: str) -> None:
    r"""Show the architecture, parameters, memory and tensors of MODEL, a name, a .gguf file or a folder.

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
        ("on disk", size(stored)),
        ("in memory", f"{size(4 * parameters)} as float32"),
        ("KV cache", f"{size(2 * 4 * config.n_layers * config.g * config.k)} a token as float32"),
    ]
    for name, value in rows:
        click.echo(f"{name:<14}{value}")
    click.echo(f"\n{'tensor':<40}{'shape':>16}{'type':>7}{'bytes':>14}")
    for name in source.names():
        shape = " x ".join(str(n) for n in source.shape(name))
        click.echo(f"{name:<40}{shape:>16}{source.dtype(name):>7}{source.nbytes(name):>14,}")


def size(nbytes: float) -> str:
    """Bytes for people, in powers of ten."""
    for unit in ("B", "kB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.2f} GB"
