"""Exercises: stubs that a learner fills in a file of their own, and marks for what they wrote.

An exercise is a prose cell and a code cell with two functions: `NAME`, which raises NotImplementedError, and
`mark_NAME(answer)`, which is given the learner's function and raises AssertionError with a helpful line. Both may
use what the lesson's first code cell defines, so marking runs that cell and nothing else of the lesson.
"""

import ast
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from ..errors import UserError
from .lesson import Cell, Lesson


@dataclass(frozen=True)
class Exercise:
    """A function to be written: the task, its stub and the cell it comes from."""

    name: str
    task: Cell
    stub: str
    cell: Cell


@dataclass(frozen=True)
class Mark:
    """What an answer is worth; `line` says what is wrong."""

    name: str
    verdict: Literal["right", "wrong", "missing"]
    line: str = ""


def exercises(lesson: Lesson) -> list[Exercise]:
    """Those of a lesson, in order."""
    return [
        new_exercise(step.prose, step.code)
        for step in lesson.steps
        if step.prose and step.code and step.code.exercise
    ]


def new_exercise(task: Cell, cell: Cell) -> Exercise:
    """An exercise from its two cells."""
    stub = next(node for node in ast.parse(cell.text).body if isinstance(node, ast.FunctionDef))
    return Exercise(stub.name, task, "\n".join(cell.text.splitlines()[stub.lineno - 1 : stub.end_lineno]), cell)


def stubs(lesson: Lesson, command: str) -> str:
    """A Python file to write answers into; `command` marks it."""
    parts = [f'"""Answers to lesson {lesson.number}, {lesson.title}. To have them marked: {command}"""']
    parts.append(lesson.start.text)
    for one in exercises(lesson):
        task = "\n".join(f"# {line}".rstrip() for line in one.task.text.splitlines())
        parts.append(f"\n{task}\n{one.stub}")
    return "\n\n".join(parts) + "\n"


def mark(lesson: Lesson, path: Path) -> list[Mark]:
    """Marks for the answers in a file; UserError if it cannot be run."""
    module = lesson.module()
    lesson.run(lesson.start, module)
    answers = ModuleType(path.stem)
    try:
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), answers.__dict__)
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; minillm tutorial {lesson.number} --stubs {path} writes it"
        ) from None
    except Exception as error:
        raise UserError(f"{path} does not run: {told(error, path)}") from None
    marks = []
    for one in exercises(lesson):
        lesson.run(one.cell, module)
        marks.append(mark_one(one, getattr(module, f"mark_{one.name}"), getattr(answers, one.name, None), path))
    return marks


def mark_one(exercise: Exercise, marker: Any, answer: Any, path: Path) -> Mark:
    """The mark of one answer."""
    if answer is None:
        return Mark(exercise.name, "missing", f"there is no function {exercise.name} in {path.name}")
    try:
        marker(answer)
    except NotImplementedError:
        return Mark(exercise.name, "missing", "still a stub")
    except AssertionError as error:
        return Mark(exercise.name, "wrong", str(error) or "an assertion of its own fails")
    except Exception as error:
        return Mark(exercise.name, "wrong", told(error, path))
    return Mark(exercise.name, "right")


def told(error: Exception, path: Path) -> str:
    """An exception in a line, with the last line of the learner's file that led to it."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno if frames else None
    message = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{message} (line {line})" if line and not isinstance(error, SyntaxError) else message


def expect(answer: Any, truth: Any, what: str = "the answer", tolerance: float = 1e-4) -> None:
    """AssertionError in one helpful line unless answer is truth.

    Arrays of floats may differ by `tolerance` times the largest number of truth; everything else must be equal.
    """
    assert answer is not None, f"{what} is None; is a `return` missing?"
    if not hasattr(truth, "shape") and not isinstance(truth, float):
        assert answer == truth, f"{what} is {short(answer)}, expected {short(truth)}"
        return
    got, want = np.asarray(answer), np.asarray(truth)
    assert got.shape == want.shape, f"{what} has shape {list(got.shape)}, expected {list(want.shape)}"
    if want.dtype.kind not in "f":
        wrong = got != want
    else:
        largest = np.max(np.abs(want), where=np.isfinite(want), initial=0.0)
        wrong = ~np.isclose(got, want, rtol=0, atol=tolerance * largest, equal_nan=True)
    if np.any(wrong):
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        where = f" at {list(place)}" if place else ""
        some = f" ({np.sum(wrong)} of {wrong.size} are wrong)" if wrong.size > 1 else ""
        raise AssertionError(f"{what}{where} is {got[place]:.5g}, expected {want[place]:.5g}{some}")


def short(value: Any) -> str:
    """A value in a few words."""
    text = repr(value)
    return text if len(text) <= 100 else text[:99] + "…"
