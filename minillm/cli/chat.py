"""`minillm chat`: talk with a model."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UserError
from ..folders import cache_folder, whole
from .completion import ModelName
from .generate import opened
from .sampling_options import sampling_options
from .terminal import counted, interactive, note, printable, status

if TYPE_CHECKING:
    from ..session import Session

REMEMBERED = 1000  # lines that come back with the arrow keys
COMMANDS = """\
/reset        begin anew
/system TEXT  begin anew, with this said by the system
/save FILE    write the conversation, as JSON
/quit         end, as Ctrl-D does
/help         show this"""


@click.command("chat", short_help="Talk with a model.")
@click.argument("model", default="smollm2-135m", type=ModelName())
@click.option("--system", metavar="TEXT", help="What the system says first.")
@click.option(
    "-n", "--max-tokens", metavar="N", default=1024, show_default=True, help="Tokens of an answer at most."
)
@sampling_options
@click.option(
    "--repeat-penalty", metavar="R", default=1.0, help="Above 1 discourages tokens already there; 1 is off."
)
@click.option("--seed", metavar="N", type=int, help="Draw the same answers again.")
@click.option("--quant", metavar="RECIPE", help="Weights in few bits: w8a8, int4-g32, q4_k …")
def command(model: str, quant: str | None, **options: Any) -> None:
    """Talk with MODEL. The default is smollm2-135m, which has to be pulled first. Ctrl-C ends an answer, Ctrl-D the
    conversation; a \\ at the end of a line goes on in the next. Lines that begin with / are commands, /help lists
    them. Without a terminal, each line of standard input is a turn.

    \b
    Examples:
      minillm pull smollm2-135m
      minillm chat
      minillm chat smollm2-135m --system "Answer in one sentence." --temperature 0
      echo "Name three colours." | minillm chat
    """
    with status(f"loading {model}"):
        from ..session import Session

        lm = opened(model, quant)
        session = Session(lm, **options)
        lm.model  # noqa: B018  # waits for the weights
    if sys.stdin is None:
        raise UserError("standard input is closed, expected somebody who talks")
    if not sys.stdin.isatty():
        for line in lines():
            if not take(session, line):
                return
        return
    note(f"{model}; /help lists commands, Ctrl-D ends")
    with remembered_lines():
        for line in lines():
            try:
                if not take(session, line):
                    return
            except UserError as error:
                note(printable(str(error)))


def lines() -> Iterator[str]:
    """What is typed, or comes from standard input, until it ends."""
    typed, begun = sys.stdin.isatty(), ""
    while True:
        try:
            line = begun + input(("… " if begun else "> ") if typed else "")
        except EOFError:
            if typed:
                click.echo()
            return
        except KeyboardInterrupt:
            if not typed:
                raise
            begun = ""
            note("\nCtrl-D ends the conversation")
            continue
        except UnicodeDecodeError as error:
            raise UserError(f"standard input is not UTF-8: {error.reason}") from None
        if line.endswith("\\"):
            begun = line[:-1] + "\n"
            continue
        begun = ""
        if line.strip():
            yield line


def take(session: "Session", line: str) -> bool:
    """Answer a line, or do what it commands; False if that is to end."""
    if not line.startswith("/"):
        answer(session, line)
        return True
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    if name == "/quit":
        return False
    if name == "/help":
        note(COMMANDS)
    elif name in ("/reset", "/system"):
        if name == "/system":
            session.system = rest or None
        session.reset()
        note("begun anew" + (f", with the system's {session.system!r}" if session.system else ""))
    elif name == "/save":
        save(session, rest)
    else:
        raise UserError(f"{name} is no command; /help lists them, and a blank before it makes it text")
    return True


def answer(session: "Session", line: str) -> None:
    """Ask, and show the answer as it comes; somebody at the terminal may stop it."""
    shown, pieces = interactive(), session.ask(line)
    try:
        with status("reading, compiling what is new"):
            first = next(pieces, "")
        for piece in chain([first], pieces):
            click.echo(printable(piece) if shown else piece, nl=False)
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
        pieces.close()
    click.echo()
    if session.finish_reason == "length":
        note("(ended by --max-tokens, or the context is full: then /reset)")


def save(session: "Session", name: str) -> None:
    """Write the messages to a file in one go."""
    if not name:
        raise UserError("/save needs the name of a file, as in: /save talk.json")
    path = Path(name)
    try:
        with whole(path) as draft:
            draft.write_text(json.dumps(session.messages, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    note(f"{counted(len(session.messages), 'message')} in {path}")


@contextmanager
def remembered_lines() -> Iterator[None]:
    """Lines of this conversation and of earlier ones come back with the arrow keys."""
    import readline

    path = cache_folder() / "chat_history"
    with suppress(OSError):  # there is none yet, or it cannot be read
        readline.read_history_file(path)
    readline.set_history_length(REMEMBERED)
    readline.parse_and_bind("set enable-bracketed-paste on")  # lines pasted together are one turn
    try:
        yield
    finally:
        with suppress(OSError):  # lines that come back are worth no error
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole(path) as draft:
                readline.write_history_file(draft)
