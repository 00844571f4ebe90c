"""What a person at a terminal sees beside the text itself."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import click


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


def meter(doing: str, done: int, of: int) -> str:
    """How far something is, in bytes, as a line of text: a bar, and figures."""
    full = 20 * done // max(of, 1)
    return f"{doing} {'━' * full}{'╌' * (20 - full)} {done / 1e6:.0f} of {of / 1e6:.0f} MB"


def note(line: str) -> None:
    """A dim line on standard error, above a spinner or a bar if there is one."""
    ctx = click.get_current_context(silent=True)
    styled = interactive() and (ctx is None or ctx.color is not False)
    # rich stands in for sys.stderr while it draws, which click's echo goes around
    print(click.style(line, dim=True) if styled else line, file=sys.stderr)


@contextmanager
def bar() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar if somebody is looking, and how to move it: what is being done, how far, of how much."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda doing, done, of: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("loading", total=None)
        yield lambda doing, done, of: shown.update(task, description=doing, completed=done, total=of)


@contextmanager
def byte_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Like `bar`, for bytes; if nobody is looking, a line for each step and for each tenth of it."""
    if sys.stderr is not None and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
        with Progress(*columns, console=Console(stderr=True), transient=True) as drawn:
            task = drawn.add_task("", total=None)
            yield lambda doing, done, of: drawn.update(task, description=doing, completed=done, total=of or None)
        return
    said = None

    def tell(doing: str, done: int, of: int) -> None:
        nonlocal said
        tenths = 10 * done // of if of else 0
        if said != (doing, tenths):
            said = doing, tenths
            click.echo(f"{doing}: {done / 1e6:.1f} of {of / 1e6:.1f} MB" if of else doing, err=True)

    yield tell


@contextmanager
def no_ctrl_c_in_imports() -> Iterator[None]:
    """Have Ctrl-C end the process if it comes while a module is imported: extension modules print it, or crash."""

    def heard(number: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code.co_name == "_find_and_load":  # of importlib, for a module that is not there yet
                leave(130)
            frame = frame.f_back
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # nobody wants to hear it, or otherwise
        yield
        return
    signal.signal(signal.SIGINT, heard)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def leave(code: int) -> NoReturn:
    """End the process at once: threads may be reading weights or compiling, and need not be waited for."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(code)


def printable(text: str) -> str:
    """Text without the control characters that could steer a terminal; line breaks and tabs stay."""
    return "".join(c for c in text if c in "\n\t" or (ord(c) >= 32 and not 127 <= ord(c) < 160))


def counted(n: int, one: str, many: str = "") -> str:
    """`1 token`, `2 tokens`."""
    return f"{n} {one if n == 1 else many or one + 's'}"


def size(nbytes: float) -> str:
    """Bytes for people, in powers of ten."""
    for unit in ("B", "kB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.2f} GB"
