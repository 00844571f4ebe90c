"""The lessons as a static site: prose, code, what it printed and drew, a page each and an index.

    python -m tutorials.build [NUMBER …] [--output FOLDER]

Each lesson is run from start to end, and a page is written only if it came to its end. A page is one file, pictures
and style inside, and needs no network.
"""

import base64
import contextlib
import html
import io
import os
from pathlib import Path
from typing import Any

import click
import jinja2
from markdown_it import MarkdownIt
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from minillm.lessons.alone import alone
from minillm.lessons.exercises import exercises
from minillm.lessons.lesson import Cell, Lesson, find_lesson, lessons
from minillm.lessons.pictures import Picture

HERE = Path(__file__).parent
LIGHT, DARK = (HtmlFormatter(style=style, cssclass="code") for style in ("friendly", "github-dark"))


def page_of(lesson: Lesson, every: list[Lesson]) -> str:
    """Run one of the lessons and render it; what its cells raise is raised."""
    module, stubs = lesson.module(), {one.cell: one.stub for one in exercises(lesson)}
    parts = []
    for cell in lesson.cells:
        if cell.prose:
            parts.append(MarkdownIt("commonmark").enable("table").render(cell.text))
        elif cell.exercise:
            parts.append(coloured(stubs[cell]))
        else:
            parts += [coloured(cell.text), *came_out(*run(lesson, cell, module))]
    return rendered(lesson.title, "\n".join(parts), every, every.index(lesson))


def run(lesson: Lesson, cell: Cell, module: Any) -> tuple[str, Any]:
    """What a cell printed, and its value."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        value = lesson.run(cell, module)
    return printed.getvalue(), value


def came_out(printed: str, value: Any) -> list[str]:
    """HTML of what a cell printed, and of what it drew."""
    parts = []
    if isinstance(value, Picture):
        printed = printed.replace(f"picture: {value.path}\n", "")  # it is here
        code = base64.b64encode(value.path.read_bytes()).decode()
        alt = html.escape(value.path.stem)
        parts = [f'<div class=picture><img src="data:image/png;base64,{code}" alt="{alt}"></div>']
    return ([f"<pre class=out>{html.escape(printed.rstrip())}</pre>"] if printed.strip() else []) + parts


def coloured(code: str) -> str:
    """HTML of some Python."""
    return highlight(code, PythonLexer(), LIGHT)


def rendered(title: str, body: str, every: list[Lesson], place: int | None) -> str:
    """A whole page, that of a lesson at its place among all, or the index."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
    template = environment.from_string((HERE / "page.html").read_text(encoding="utf-8"))
    before = every[place - 1] if place else None
    after = every[place + 1] if place is not None and place + 1 < len(every) else None
    styles = {"light": LIGHT.get_style_defs(".code"), "dark": DARK.get_style_defs(".code")}
    around = {"before": before, "after": after, "index": place is None}
    return template.render(title=html.escape(title), body=body, **around, **styles)


def index(every: list[Lesson]) -> str:
    """The page that lists the others."""
    rows = [
        f"<li value={one.number}><a href={one.name}.html>{html.escape(one.title)}</a><br>{html.escape(one.promise)}"
        for one in every
    ]
    return rendered(
        "minillm: tutorials", "<h1>minillm: tutorials</h1>\n<ol>" + "\n".join(rows) + "</ol>", every, None
    )


def write(path: Path, text: str) -> None:
    """Write a page in one step."""
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


@click.command()
@click.argument("numbers", type=int, nargs=-1)
@click.option("--output", type=click.Path(path_type=Path), default=HERE / "site", help="The folder for the pages.")
def main(numbers: tuple[int, ...], output: Path) -> None:
    """Build the pages of some lessons, or of all, and the index."""
    every = lessons()
    chosen = [find_lesson(number).path for number in numbers] or [lesson.path for lesson in every]
    output.mkdir(parents=True, exist_ok=True)
    for lesson in every:
        if lesson.path in chosen:
            click.echo(f"{lesson.number}. {lesson.title}")
            write(output / f"{lesson.name}.html", alone(page_of, lesson, every))
    write(output / "index.html", index(every))
    click.echo(f"{output / 'index.html'}")


if __name__ == "__main__":
    main()
