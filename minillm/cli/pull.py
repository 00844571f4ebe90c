"""`minillm pull`: fetch a model by name."""

import sys

import click

from .terminal import byte_bar, size


@click.command("pull", short_help="Fetch a model by name.")
@click.argument("name")
def command(name: str) -> None:
    """Fetch a model by NAME and check it. A download that was stopped goes on where it was.

    A NAME of `minillm list` is kept in the cache folder. hf:ORG/REPO or hf:ORG/REPO@REVISION is on the Hugging Face
    hub: only its safetensors, JSON, tokenizer and template are fetched, into the cache of the library
    huggingface_hub (pip install 'minillm[hub]').

    \b
    Examples:
      minillm pull smollm2-135m
      minillm pull hf:HuggingFaceTB/SmolLM2-135M-Instruct
    """
    from ..checkpoint import hub
    from ..checkpoint.pull import MODELS, pull

    if name.startswith(hub.PREFIX):
        path = hub.pull_from_hub(name, bars=sys.stderr is not None and sys.stderr.isatty())
        click.echo(f"{name} is in {path}")
        return
    with byte_bar() as progress:
        path = pull(name, progress)
    click.echo(f"{name} ({size(path.stat().st_size)}, {MODELS[name].licence}) is in {path}")
