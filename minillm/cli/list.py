"""`minillm list`: the models that there are by name."""

import click


@click.command("list", short_help="Show the models there are by name.")
def command() -> None:
    """Show the models that come with minillm, were pulled, or can be."""
    from ..checkpoint.pull import MODELS, model_path
    from ..folders import bundled_models
    from .info import size

    rows = [
        (name, sum(file.stat().st_size for file in folder.iterdir()), "comes with minillm")
        for name, folder in bundled_models().items()
    ]
    for name, model in MODELS.items():
        here = f"in {model_path(name)}" if model_path(name).is_file() else f"minillm pull {name}"
        rows.append((name, model.size, here))
    for name, nbytes, where in rows:
        click.echo(f"{name:<20}{size(nbytes):>10}   {where}")
