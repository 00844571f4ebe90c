"""What a person at a terminal sees beside the text itself."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn


def interactive() -> bool:
    """Whether both text and notes go to a terminal."""
    streams = (sys.stdout, sys.stderr)  # a stream that was closed is None
    return all(stream is not None and stream.isatty() for stream in streams)


@contextmanager
def status(line: str) -> Iterator[Callable[[str], None]]:
    """A spinner with a line of text while something takes time; yields a function that changes the line.

    Nothing is shown when output is not a terminal.
    """
    if not interactive():
        yield lambda line: None
        return
    from rich.console import Console  # imported late: piped runs need none of it
    from rich.text import Text

    with Console(stderr=True).status(Text(line, style="dim"), spinner="dots") as spinner:
        yield lambda line: spinner.update(Text(line, style="dim"))


def leave(code: int) -> NoReturn:
    """End the process at once: threads may be reading weights or compiling, and need not be waited for."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(code)


def printable(text: str) -> str:
    """Text without the control characters that could steer a terminal; line breaks and tabs stay."""
    return "".join(c for c in text if c in "\n\t" or (ord(c) >= 32 and not 127 <= ord(c) < 160))
