"""Marks: right, wrong with a line that helps, missing; and files that do not run."""

import numpy as np
import pytest

from minillm.errors import UserError
from minillm.lessons import expect
from minillm.lessons.exercises import mark, stubs


def marked(lesson, answer: str):
    path = lesson.path.parent / "answers.py"
    path.write_text(answer)
    (one,) = mark(lesson, path)
    return one.verdict, one.line


def test_stubs_are_a_file_that_runs_and_is_still_to_be_written(lesson):
    text = stubs(lesson, "minillm tutorial 1 --check answers.py")
    assert "import numpy as np" in text
    assert "# **1.** Add." in text
    assert "mark_add" not in text
    assert marked(lesson, text) == ("missing", "still a stub")


@pytest.mark.parametrize(
    ("answer", "verdict", "line"),
    [
        ("def add(a, b): return a + b", "right", ""),
        ("def add(a, b): return a * b", "wrong", "add(2, 3) is 6, expected 5"),
        ("def add(a, b): a + b", "wrong", "add(2, 3) is None; is a `return` missing?"),
        ("x = 1\ndef add(a, b):\n    return c", "wrong", "NameError: name 'c' is not defined (line 3)"),
        ("def plus(a, b): return a + b", "missing", "there is no function add in answers.py"),
    ],
)
def test_an_answer_gets_its_mark(lesson, answer, verdict, line):
    assert marked(lesson, answer) == (verdict, line)


@pytest.mark.parametrize(("answer", "words"), [("def add(", "SyntaxError"), ("1 / 0", "ZeroDivisionError")])
def test_a_file_that_does_not_run_is_a_users_error(lesson, answer, words):
    with pytest.raises(UserError, match=words):
        marked(lesson, answer)
    with pytest.raises(UserError, match="--stubs"):
        mark(lesson, lesson.path.parent / "nothing.py")


@pytest.mark.parametrize(
    ("answer", "truth", "line"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2)), r"shape \[2, 3\], expected \[3, 2\]"),
        (np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0]), r"at \[2\] is 4, expected 3 \(1 of 3 are wrong\)"),
        (np.array([np.nan]), np.array([0.0]), r"at \[0\] is nan, expected 0"),
        (np.array([1, 2]), np.array([1, 3]), r"at \[1\] is 2, expected 3"),
        (0.5, 0.25, "is 0.5, expected 0.25"),
        ("a", "b", "is 'a', expected 'b'"),
    ],
)
def test_expect_names_the_first_difference(answer, truth, line):
    with pytest.raises(AssertionError, match=line):
        expect(answer, truth)


def test_expect_allows_for_rounding_and_for_infinities():
    expect(np.array([1, 2], np.float32), np.array([1.0, 2.00001]))
    expect(np.array([-np.inf, 1.0]), np.array([-np.inf, 1.0]))
    expect(1e-9, 0.0 + 1e-9)
