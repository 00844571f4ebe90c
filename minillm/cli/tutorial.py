"""`minillm tutorial`: step through the lessons."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING

import click

from ..errors import UserError
from .terminal import interactive

if TYPE_CHECKING:
    from rich.console import Console

    from ..lessons.lesson import Lesson
    from ..lessons.walk import Walk


@click.command("tutorial", short_help="Learn it, a step at a time.")
@click.argument("number", type=int, required=False)
@click.option("--all", "everything", is_flag=True, help="Run without stopping; without NUMBER every lesson.")
@click.option("--restart", is_flag=True, help="Begin again where you had come further.")
@click.option("--stubs", type=click.Path(path_type=Path), help="Write the exercises into a file, to be filled in.")
@click.option("--check", type=click.Path(path_type=Path), help="Mark the exercises in that file.")
def command(number: int | None, everything: bool, restart: bool, stubs: Path | None, check: Path | None) -> None:
    """List the lessons, or step through lesson NUMBER: Enter runs the next cell, q leaves, and it goes on there.

    \b
    Examples:
      minillm tutorial
      minillm tutorial 1
      minillm tutorial 1 --stubs answers.py
      minillm tutorial 1 --check answers.py
    """
    from ..lessons.lesson import find_lesson, lessons

    asked = [
        name
        for name, given in (("--all", everything), ("--restart", restart), ("--stubs", stubs), ("--check", check))
        if given
    ]
    if len(asked) > 1:
        raise UserError(f"{asked[0]} does not go with {asked[1]}; leave one out")
    if number is None and asked not in ([], ["--all"]):
        raise UserError(f"{asked[0]} needs the number of a lesson, as in: minillm tutorial 1 {asked[0]}")
    if everything and number is None:
        from ..lessons.alone import alone

        for lesson in lessons():
            alone(run_all, lesson)
    elif number is None:
        list_lessons()
    elif everything:
        run_all(find_lesson(number))
    elif stubs is not None:
        write_stubs(find_lesson(number), stubs)
    elif check is not None:
        mark_answers(find_lesson(number), check)
    else:
        walk(find_lesson(number), restart)


def list_lessons() -> None:
    """What there is to learn, and how far one came."""
    from ..lessons.exercises import exercises
    from ..lessons.lesson import lessons
    from ..lessons.progress import Progress, read_progress

    progress = read_progress()
    for lesson in lessons():
        mine, asked = progress.get(lesson.name, Progress()), exercises(lesson)
        solved, taken = sum(one.name in mine.solved for one in asked), min(mine.steps, len(lesson.steps))
        words = (
            "read" if taken == len(lesson.steps) else f"{taken} of {len(lesson.steps)} steps taken" if taken else ""
        )
        words += f", {solved} of {len(asked)} exercises" if solved else ""
        click.echo(
            f"{lesson.number:>3}  {click.style(lesson.title, bold=True)}"
            + (f"  ({words.lstrip(', ')})" if words else "")
        )
        click.echo(wrapped(lesson.promise))
    click.echo("\nminillm tutorial 1 begins the first; --help shows the rest.")


def wrapped(line: str) -> str:
    """A line under a title; at a terminal, broken between words."""
    if not interactive():
        return f"     {line}"
    from ..lessons.walk import WIDEST

    return click.wrap_text(line, min(get_terminal_size().columns, WIDEST), "     ", "     ")


def new_console() -> "Console":
    """Where lessons are shown, no wider than is good for reading."""
    from rich.console import Console

    from ..lessons.walk import WIDEST

    return Console(width=min(Console().width, WIDEST), highlight=False)


def run_all(lesson: "Lesson") -> None:
    """A lesson from start to end; a cell that fails ends the command with its traceback and code 1."""
    from ..lessons.walk import Walk

    def refuse(prompt: str) -> str:
        raise EOFError

    one = Walk(lesson, new_console(), refuse)
    with remembered(one):
        one.run_all()


def walk(lesson: "Lesson", restart: bool) -> None:
    """A lesson step by step, from where one left it."""
    from ..lessons.progress import Progress, read_progress
    from ..lessons.walk import Walk

    if not interactive() or not sys.stdin.isatty():
        raise UserError(f"stepping needs a terminal; minillm tutorial {lesson.number} --all runs without stopping")
    mine, console = read_progress().get(lesson.name, Progress()), new_console()
    one = Walk(lesson, console, lambda prompt: input(prompt))
    if 0 < mine.steps < len(lesson.steps) and not restart:
        console.print(f"You had taken {mine.steps} steps; taking them again (--restart begins anew) …", style="dim")
        one.go_to(mine.steps)
    with remembered(one, restart):
        one.go()


@contextmanager
def remembered(one: "Walk", restart: bool = False) -> Iterator[None]:
    """Keep how far the walk has come, however it ends; less than was known only after a restart."""
    from ..lessons.progress import Progress, read_progress, write_progress

    try:
        yield
    finally:
        mine = read_progress().get(one.lesson.name, Progress())
        mine.steps = max(one.taken, 0 if restart else mine.steps)
        write_progress(one.lesson.name, mine)


def write_stubs(lesson: "Lesson", path: Path) -> None:
    """The exercises as a file to be filled in; one that is there is left alone."""
    from ..lessons.exercises import stubs

    command = f"minillm tutorial {lesson.number} --check {path}"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(stubs(lesson, command))
    except FileExistsError:
        raise UserError(f"{path} is there already; give another name, or mark it with --check") from None
    click.echo(f"fill in {path}, then: {command}")


def mark_answers(lesson: "Lesson", path: Path) -> None:
    """A line for each exercise; exit code 1 unless all are right."""
    from ..lessons.exercises import mark
    from ..lessons.progress import Progress, read_progress, write_progress

    marks = mark(lesson, path)
    for one in marks:
        sign = {"right": click.style("✓", fg="green"), "wrong": click.style("✗", fg="red"), "missing": "·"}[
            one.verdict
        ]
        click.echo(f"{sign} {one.name}" + (f": {one.line}" if one.line else ""))
    mine, right = (
        read_progress().get(lesson.name, Progress()),
        [one.name for one in marks if one.verdict == "right"],
    )
    mine.solved = right
    write_progress(lesson.name, mine)
    click.echo(f"{len(right)} of {len(marks)} right")
    sys.exit(0 if len(right) == len(marks) else 1)
