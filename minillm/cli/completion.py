"""`minillm completion`: what a shell needs to complete commands, options and models."""

import click
from click.shell_completion import CompletionItem, get_completion_class

# What stands before click's scripts and behind them, for words with = : @ inside, such as hf:ORG/REPO. Bash parts
# them there: the last is joined again, and bash is given what its last part lacks. Zsh would put a VALUE in the
# place of all: it is told to leave --option= as it is, and to replace nothing but what matches (no -U). And it may
# not have started its completion yet.
AROUND = {
    "bash": (
        "",
        r"""
_minillm_joined() {
    local n=$COMP_CWORD word=${COMP_WORDS[COMP_CWORD]} line=${COMP_LINE:0:COMP_POINT}
    while ((n > 1)) && [[ ${line##*[[:space:]]} == *"${COMP_WORDS[n - 1]}$word" ]]; do
        word=${COMP_WORDS[--n]}$word
    done
    COMP_WORDS=("${COMP_WORDS[@]:0:n}" "$word") COMP_CWORD=$n
    _minillm_completion "$1"
    word=${word%"$2"}
    COMPREPLY=("${COMPREPLY[@]#"${word##*=}"}")
}
complete -o nosort -F _minillm_joined minillm
""",
    ),
    "fish": ("", ""),
    "zsh": (
        "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i }\n",
        """
functions[_minillm_completion]=${functions[_minillm_completion]// -U/}
_minillm_value() { compset -P '--*='; _minillm_completion "$@" }
compdef _minillm_value minillm
""",
    ),
}


@click.command("completion", short_help="Have the shell complete what is typed.")
@click.argument("shell", type=click.Choice(list(AROUND)))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script by which SHELL completes commands, options and the names of models.

    \b
    Examples:
      eval "$(minillm completion bash)"
      minillm completion fish > minillm.fish

    The first line belongs into ~/.bashrc, or with zsh into ~/.zshrc; fish reads ~/.config/fish/completions.
    """
    found, (before, behind) = get_completion_class(shell), AROUND[shell]
    assert found is not None
    click.echo(before + found(ctx.find_root().command, {}, "minillm", "_MINILLM_COMPLETE").source() + behind)


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
