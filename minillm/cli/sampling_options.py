"""The options of every command that draws tokens."""

from collections.abc import Callable
from typing import Any

import click

OPTIONS = (
    click.option(
        "--temperature",
        "--temp",
        metavar="T",
        default=0.7,
        show_default=True,
        help="0 always takes the likeliest token.",
    ),
    click.option("--top-k", metavar="K", default=0, help="Keep the k likeliest tokens; 0 is off."),
    click.option("--top-p", metavar="P", default=1.0, help="Keep the likeliest up to a sum of P; 1 is off."),
    click.option("--min-p", metavar="P", default=0.0, help="Keep tokens this likely beside the best; 0 is off."),
)


def sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command these options."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command
