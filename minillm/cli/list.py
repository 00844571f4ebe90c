"""`minillm list`: the models that there are by name."""

import click

from .terminal import printable, size


@click.command("list", short_help="Show the models there are by name.")
def command() -> None:
    """Show the models that come with minillm, were pulled, or can be, and those in the Hugging Face hub's cache.

    \b
    Example:
      minillm list
    """
    from ..checkpoint.hub import cached_models
    from ..checkpoint.pull import MODELS, model_path
    from ..folders import bundled_models

    rows = [
        (name, sum(file.stat().st_size for file in folder.iterdir()), "comes with minillm")
        for name, folder in bundled_models().items()
    ]
    for name, model in MODELS.items():
        here = f"in {model_path(name)}" if model_path(name).is_file() else f"minillm pull {name}"
        rows.append((name, model.size, here))
    rows += [(one.name, one.size, f"in {one.folder}") for one in cached_models()]
    width = max(len(name) for name, _, _ in rows)
    for name, nbytes, where in rows:
        click.echo(printable(f"{name:<{width}}  {size(nbytes):>9}   {where}"))
