"""`minillm pull`: fetch a model by name."""

import click

from .terminal import status


@click.command("pull", short_help="Fetch a model by name.")
@click.argument("name")
def command(name: str) -> None:
    """Fetch a model by NAME, check it, and keep it in the cache folder.

    \b
    Example:
      minillm pull smollm2-135m
    """
    from ..checkpoint.pull import MODELS, pull

    with status(f"pulling {name}") as show:
        path = pull(name, show)
    click.echo(f"{name} ({MODELS[name].licence}) is in {path}")
