"""The command line: one file a command, found by name and imported only when it runs."""

import importlib
import pkgutil
import sys
from typing import NoReturn

import click

from .. import __version__
from ..errors import UserError
from .terminal import leave, printable

DOORS = """\
minillm: LLM inference, small enough to read

  learn   minillm tutorial 1
  run     minillm generate "Recipe: Tomato Soup"
          minillm pull smollm2-135m
          minillm generate --model smollm2-135m --chat --temperature 0 "Name three colours."
  judge   minillm validate my_kernels.py:flash --op attention

minillm --help lists the commands.
"""
HELPERS = {"input_file", "sampling_options", "terminal"}  # modules beside the commands


class Commands(click.Group):
    """The modules of this package as commands; what a user can mend ends one with a line and exit code 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({module.name for module in pkgutil.iter_modules(__path__)} - HELPERS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        return importlib.import_module(f".{cmd_name}", __name__).command

    def invoke(self, ctx: click.Context):
        try:
            return super().invoke(ctx)
        except (UserError, click.UsageError) as error:
            reason = error.format_message() if isinstance(error, click.UsageError) else error
            stop(str(reason))
        except BrokenPipeError:
            raise
        except OSError as error:
            stop(f"{error.strerror}: {error.filename or 'output'}")
        except (KeyboardInterrupt, ImportError) as error:
            if not interrupted(error):
                raise
            leave(130)


def interrupted(error: BaseException | None) -> bool:
    """Whether it is Ctrl-C, or what a library made of that: NumPy says that it cannot be imported."""
    return error is not None and (isinstance(error, KeyboardInterrupt) or interrupted(error.__context__))


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
    if ctx.invoked_subcommand is None:
        click.echo(DOORS, nl=False)
