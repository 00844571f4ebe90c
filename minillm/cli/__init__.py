"""The command line: one file a command, found by name and imported only when it runs."""

import importlib
import os
import pkgutil
import re
import sys
from typing import NoReturn

import click

from .. import __version__
from ..errors import UserError
from .terminal import leave, no_ctrl_c_in_imports, printable

DOORS = """\
minillm: LLM inference, small enough to read

  learn   minillm tutorial 1
  run     minillm generate "Recipe: Tomato Soup"
          minillm pull smollm2-135m
          minillm chat
  judge   minillm validate my_kernels.py:flash --op attention
  plan    minillm compile tiny-moe --target tpu-v5e

minillm --help lists the commands.
"""
HELPERS = {
    "brief",
    "figures",
    "input_file",
    "mesh_options",
    "sampling_options",
    "terminal",
}  # modules beside the commands


class Commands(click.Group):
    """The modules of this package as commands; what a user can mend ends one with a line and exit code 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({module.name for module in pkgutil.iter_modules(__path__)} - HELPERS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        return importlib.import_module(f".{cmd_name}", __name__).command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            stop(told(error))

    def invoke(self, ctx: click.Context):
        try:
            with no_ctrl_c_in_imports():
                return super().invoke(ctx)
        except (UserError, click.UsageError) as error:
            stop(told(error) if isinstance(error, click.UsageError) else str(error))
        except BrokenPipeError:
            raise
        except OSError as error:
            stop(f"{error.strerror}: {error.filename or 'output'}")
        except KeyboardInterrupt:
            leave(130)


def told(error: click.UsageError) -> str:
    """What is wrong with a command line, and how it is used; of a value that will not do, only the first."""
    reason, ctx = error.format_message().rstrip("."), error.ctx
    lacking = isinstance(error, click.MissingParameter)
    if ctx is None or (isinstance(error, click.BadParameter) and not lacking):
        return reason
    examples = re.findall(rf"^ *({ctx.command_path} .*)$", ctx.command.help or "", re.MULTILINE)
    if examples and not isinstance(error, click.NoSuchOption):  # something is missing, or too much
        return f"{reason}, as in: {examples[0]}"
    return f"{reason}; {ctx.command_path} --help shows what there is"


def stop(reason: str) -> NoReturn:
    """One line of bounded length, whatever names and values of a damaged file are in it; exit code 2."""
    line = " ".join(printable(reason).split())
    click.echo(f"minillm: {line if len(line) <= 500 else line[:497] + '...'}", err=True)
    sys.exit(2)


@click.group(cls=Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.pass_context
def main(ctx: click.Context) -> None:
    """LLM inference, small enough to read."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        ctx.color = False
    if ctx.invoked_subcommand is None:
        click.echo(DOORS, nl=False)
