"""Lessons: Python files one steps through. The texts are in `tutorials/`, here is what walks them.

    lesson.py     a file in percent format as a list of cells; running a cell
    walk.py       stepping at a terminal: prose, code, Enter, what came out
    values.py     a value in a few lines
    exercises.py  stubs for a learner's answers, and marking them
    pictures.py   what lessons draw with
    progress.py   how far one came
    alone.py      a fresh process for each of several

A lesson imports `picture` and `expect` from here, and nothing else knows that it is a lesson.
"""

from .exercises import expect
from .pictures import picture

__all__ = ["expect", "picture"]
