"""A lesson: a Python file in percent format, the one that notebooks and editors know.

    # %% [markdown]             prose, each line behind a `#`
    # %%                        code
    # %% [markdown] exercise    what a learner is asked to write
    # %% exercise               a stub for it, and the function that marks an answer

Run as a file it is plain Python. Here it is cut into cells, and into steps: some prose and the code it announces.
"""

import ast
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from ..errors import UserError

FOLDER = Path(__file__).parent.parent / "tutorials"
MARKER = re.compile(r"# %%( \[markdown\])?( exercise)?")


@dataclass(frozen=True)
class Cell:
    """Text of a cell, prose without its comment signs; `line` is where it begins in the file, from 1."""

    text: str
    line: int
    prose: bool
    exercise: bool


@dataclass(frozen=True)
class Step:
    """Prose, then the code it announces; one of the two may be missing."""

    prose: Cell | None
    code: Cell | None


@dataclass(frozen=True)
class Lesson:
    """A file `NN_name.py` and its cells."""

    path: Path
    cells: tuple[Cell, ...]

    @property
    def name(self) -> str:
        """NN_name."""
        return self.path.stem

    @property
    def number(self) -> int:
        """NN."""
        return int(self.name.partition("_")[0])

    @property
    def title(self) -> str:
        """The heading of its first cell, without the number."""
        return self.cells[0].text.partition("\n")[0].lstrip("# ").partition(". ")[2]

    @property
    def promise(self) -> str:
        """What one will have learned: the paragraph under the heading."""
        return " ".join(self.cells[0].text.split("\n\n")[1].split())

    @cached_property
    def steps(self) -> list[Step]:
        """The cells in the pairs in which they are read."""
        steps: list[Step] = []
        for cell in self.cells:
            if not cell.prose and steps and steps[-1].code is None:
                steps[-1] = Step(steps[-1].prose, cell)
            else:
                steps.append(Step(cell, None) if cell.prose else Step(None, cell))
        return steps

    @property
    def start(self) -> Cell:
        """The first code cell: what it imports and loads, exercises may use."""
        return next(cell for cell in self.cells if not cell.prose)

    def module(self) -> ModuleType:
        """An empty namespace to run cells in."""
        module = ModuleType(self.name)
        module.__file__ = str(self.path)
        return module

    def run(self, cell: Cell, module: ModuleType) -> Any:
        """Run a code cell; the value of its last line, if that is an expression, as in a notebook."""
        tree = ast.parse("\n" * (cell.line - 1) + cell.text, str(self.path))  # so that tracebacks show the file
        *_, last = None, *tree.body
        if isinstance(last, ast.Expr):
            tree.body.pop()
        exec(self._compiled(tree, "exec"), module.__dict__)
        if isinstance(last, ast.Expr):
            return eval(self._compiled(ast.Expression(last.value), "eval"), module.__dict__)
        return None

    def _compiled(self, tree: ast.Module | ast.Expression, mode: str) -> CodeType:
        return compile(tree, str(self.path), mode, dont_inherit=True)


def read_lesson(path: Path) -> Lesson:
    """The lesson in a file; ValueError names a line that begins no cell."""
    cells: list[tuple[re.Match, int, list[str]]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("# %%"):
            match = MARKER.fullmatch(line)
            if match is None:
                raise ValueError(f"{path.name}, line {number}: {line!r} begins no cell, expected {MARKER.pattern}")
            cells.append((match, number + 1, []))
        elif cells:
            cells[-1][2].append(line)
        elif line:
            raise ValueError(f"{path.name}, line {number}: there is text before the first cell")
    return Lesson(path, tuple(new_cell(*cell) for cell in cells))


def new_cell(match: re.Match, line: int, lines: list[str]) -> Cell:
    """A cell from its marker and what follows it."""
    prose = match[1] is not None
    text = "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines) if prose else "\n".join(lines)
    return Cell(text.strip("\n"), line + len(text) - len(text.lstrip("\n")), prose, match[2] is not None)


def lessons() -> list[Lesson]:
    """All there are, in order."""
    return [read_lesson(path) for path in sorted(FOLDER.glob("[0-9][0-9]_*.py"))]


def find_lesson(number: int) -> Lesson:
    """A lesson by its number; UserError if there is none."""
    known = {lesson.number: lesson for lesson in lessons()}
    if number not in known:
        raise UserError(
            f"lesson is {number}, expected one of {', '.join(map(str, known))}; minillm tutorial lists them"
        )
    return known[number]
