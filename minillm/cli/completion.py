"""`minillm completion`: what a shell needs to complete commands, options and models."""

import click
from click.shell_completion import CompletionItem, get_completion_class


@click.command("completion", short_help="Have the shell complete what is typed.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script by which SHELL completes commands, options and the names of models.

    \b
    Examples:
      eval "$(minillm completion bash)"
      minillm completion fish > minillm.fish

    The first line belongs into ~/.bashrc, or with zsh into ~/.zshrc; fish reads ~/.config/fish/completions.
    """
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(ctx.find_root().command, {}, "minillm", "_MINILLM_COMPLETE").source())


class ModelName(click.ParamType):
    """A model: a name, a .gguf file, or a folder; the shell completes all three."""

    name = "model"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from ..checkpoint.hub import cached_models
        from ..checkpoint.pull import MODELS
        from ..folders import bundled_models

        names = [*bundled_models(), *MODELS, *(one.name for one in cached_models())]
        found = [CompletionItem(name) for name in names if name.startswith(incomplete)]
        return found or [CompletionItem(incomplete, type="file")]
