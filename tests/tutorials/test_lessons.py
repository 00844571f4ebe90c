"""Every lesson runs, every section proves what it says, every exercise can be solved and catches what is wrong."""

import ast
import re
import runpy
import sys
from pathlib import Path

import jupytext
import pytest

from minillm.lessons.alone import alone
from minillm.lessons.exercises import exercises, mark
from minillm.lessons.lesson import Cell, Lesson, lessons

HERE = Path(__file__).parent
LESSONS = lessons()
each_lesson = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)


def sections(lesson: Lesson) -> dict[str, list[Cell]]:
    """The code cells under each heading, the exercises left out."""
    found: dict[str, list[Cell]] = {}
    heading = ""
    for cell in lesson.cells:
        if cell.exercise:
            break
        for heading in re.findall(r"^## (.*)$", cell.text, re.M) if cell.prose else ():
            found[heading] = []
        if not cell.prose and heading:
            found[heading].append(cell)
    return found


def names_in(node: ast.AST) -> set[str]:
    """The names that a piece of code speaks of."""
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}


def names_of_the_real_thing(lesson: Lesson) -> set[str]:
    """What the first cell imports from minillm, the model, and the lesson's own functions that use one of these."""
    names = {"lm"}
    for node in ast.walk(ast.parse(lesson.start.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("minillm"):
            names |= {alias.name for alias in node.names}
    names -= {"expect", "picture", "texts"}
    for node in ast.parse("\n".join(cell.text for cell in lesson.cells if not cell.prose)).body:
        if isinstance(node, ast.FunctionDef) and names_in(node) & names:
            names.add(node.name)
    return names


def test_lessons_are_numbered_from_one_without_a_gap():
    assert [lesson.number for lesson in LESSONS] == list(range(1, len(LESSONS) + 1))


@each_lesson
def test_a_lesson_says_first_what_one_learns(lesson):
    assert lesson.cells[0].text.startswith(f"# {lesson.number}. {lesson.title}\n")
    assert 40 <= len(lesson.promise) <= 120
    assert lesson.promise.endswith(".")


@each_lesson
def test_every_section_ends_in_an_assertion_and_touches_the_real_thing(lesson):
    real = names_of_the_real_thing(lesson)
    found = sections(lesson)
    assert len(found) >= 3
    for heading, cells in found.items():
        assert cells, f"{heading}: there is nothing to run"
        assert isinstance(ast.parse(cells[-1].text).body[-1], ast.Assert | ast.For), heading
        assert "assert " in cells[-1].text, heading
        used = names_in(ast.parse("\n".join(cell.text for cell in cells)))
        assert used & real, f"{heading}: neither ops nor the model is in it"


@each_lesson
def test_prose_comes_before_code_and_a_picture_in_between(lesson):
    assert all(step.prose for step in lesson.steps[:2])
    pictures = re.findall(r'^picture\("(.*?)"', lesson.path.read_text(), re.M)
    assert pictures
    assert all(name.startswith(f"{lesson.number:02}_") for name in pictures)


@each_lesson
def test_two_or_three_exercises_have_stubs_and_markers(lesson):
    found = exercises(lesson)
    assert 2 <= len(found) <= 3
    for one in found:
        functions = [node.name for node in ast.parse(one.cell.text).body if isinstance(node, ast.FunctionDef)]
        assert functions == [one.name, f"mark_{one.name}"]
        assert one.stub.endswith("raise NotImplementedError")


@each_lesson
def test_every_exercise_can_be_solved(lesson):
    marks = mark(lesson, HERE / "solutions" / lesson.path.name)
    assert [(one.name, one.verdict, one.line) for one in marks] == [(one.name, "right", "") for one in marks]
    assert len(marks) == len(exercises(lesson))


@each_lesson
def test_a_usual_mistake_is_caught_with_a_helpful_line(lesson):
    """The docstring of each wrong answer is what the learner must be told."""
    path = HERE / "mistakes" / lesson.path.name
    functions = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    told = {node.name: ast.get_docstring(node) or "-" for node in functions}
    for one in mark(lesson, path):
        assert one.verdict == "wrong", one.name
        assert told[one.name] in one.line


@each_lesson
def test_a_lesson_opens_as_a_notebook(lesson):
    cells = jupytext.read(lesson.path).cells
    assert [(one.cell_type == "markdown", one.source) for one in cells] == [(c.prose, c.text) for c in lesson.cells]


@pytest.mark.slow
@each_lesson
def test_a_lesson_runs(lesson, tmp_path):
    drawn = alone(run_and_draw, lesson, tmp_path)
    assert drawn == set(re.findall(r'^picture\("(.*?)"', lesson.path.read_text(), re.M))


def run_and_draw(lesson: Lesson, folder: Path) -> set[str]:
    """Run a lesson from start to end; the names of its pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minillm.lessons.pictures.cache_folder", lambda: folder)
        module = lesson.module()
        for cell in lesson.cells:
            if not cell.prose:
                lesson.run(cell, module)
    return {path.stem for path in folder.rglob("*.png")}


@pytest.mark.slow
def test_a_lesson_is_plain_python_and_runs_without_matplotlib(monkeypatch, capsys):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    runpy.run_path(str(LESSONS[0].path), run_name="__main__")
    assert "the picture 01_tokens is left out" in capsys.readouterr().out
