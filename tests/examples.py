"""Every command line that help or a README shows."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click

from minillm.cli import DOORS, main

ROOT = Path(__file__).parent.parent
FOLDERS = ("ops", "minillm", "minillm/archs", "bench", "weights", "minillm/texts", "tutorials")
PAGES = [ROOT / "README.md", *(ROOT / name / "README.md" for name in FOLDERS)]
PAGES += sorted(ROOT.glob("minillm/models/*/README.md"))


def commands() -> dict[str, click.Command]:
    """The commands by name."""
    context = click.Context(main)
    found = {name: main.get_command(context, name) for name in main.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


def command_of(line: str) -> str:
    """The name of the command that an example shows."""
    return re.findall(r"minillm (\w+)", line)[-1]


def in_help(command: click.Command) -> list[str]:
    """The examples in what a command says of itself: lines with minillm at their start, in a pipe, or in $()."""
    lines = map(str.strip, (command.help or "").splitlines())
    return [line for line in lines if re.match(r"(.* \| |.*\$\()?minillm ", line)]


def in_readme(text: str) -> Iterator[str]:
    """The command lines of minillm in a README, less what names only the command, or leaves a NAME open."""
    code = "".join(re.split("^```.*$", text, flags=re.MULTILINE)[1::2])
    fenced = [part for line in code.splitlines() for part in line.removeprefix("$ ").split(" && ")]
    for line in [*fenced, *re.findall(r"`([^`\n]+)`", text)]:
        if line.startswith("minillm "):
            words = shlex.split(line, comments=True)
            if len(words) > 2 and not any(re.fullmatch("[A-Z]+", word) for word in words):
                yield shlex.join(words)


def everywhere() -> list[str]:
    """All examples, each once."""
    lines = [line for command in commands().values() for line in in_help(command)]
    lines += re.findall("^ .*?(minillm .*)$", DOORS, re.MULTILINE)
    lines += [line for page in PAGES for line in in_readme(page.read_text(encoding="utf-8"))]
    return list(dict.fromkeys(line.replace("'", '"') for line in lines))


if __name__ == "__main__":
    print(*everywhere(), sep="\n")
