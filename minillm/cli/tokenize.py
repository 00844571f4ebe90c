"""`minillm tokenize`: a text as its tokens."""

import click

from ..errors import UserError
from .completion import ModelName
from .generate import read_prompt
from .terminal import counted, note


@click.command("tokenize", short_help="Show the tokens of a text.")
@click.argument("model", type=ModelName())
@click.argument("text", required=False)
@click.option("--plain", is_flag=True, help="Add no token, and take names of special ones for text.")
@click.option("--ids", "only_ids", is_flag=True, help="Print the ids alone, on one line.")
def command(model: str, text: str | None, plain: bool, only_ids: bool) -> None:
    """Show TEXT as MODEL reads it: the id of each token, and what it stands for, quoted as in Python.

    TEXT comes from standard input (less one final line break) if it is - or left out. Tokens that are parts of a
    character are shown as bytes.

    \b
    Examples:
      minillm tokenize tiny-transformer "Recipe: Tomato Soup"
      minillm tokenize smollm2-135m --ids < notes.txt
    """
    from ..checkpoint.loader import open_checkpoint
    from ..lm import find_model

    tokenizer = open_checkpoint(find_model(model)).tokenizer()
    if tokenizer is None:
        raise UserError(f"{model} has no tokenizer")
    ids = tokenizer.encode(read_prompt(text), special=not plain)
    if only_ids:
        click.echo(" ".join(map(str, ids)))
        return
    for token in ids:
        click.echo(f"{token:>7}  {shown(tokenizer.backend.bytes_of(token))}")
    note(counted(len(ids), "token"))


def shown(raw: bytes) -> str:
    """Text or bytes in quotes, with nothing in it that a terminal would obey."""
    try:
        return repr(raw.decode())
    except UnicodeDecodeError:
        return repr(raw)
