"""A lesson small enough to be walked in no time."""

import pytest

from minillm.lessons.lesson import read_lesson

TEXT = '''# %% [markdown]
# # 1. A small lesson
#
# How a test looks at a walk.

# %%
import numpy as np
from minillm.lessons import expect

# %% [markdown]
# ## Numbers
#
# Some **bold** numbers.

# %%
x = np.arange(6.0).reshape(2, 3)
print("twice:", 2 * x[1, 2])

# %% [markdown]
# ## More

# %%
runs = globals().get("runs", 0) + 1
y = x.T @ x
assert y.shape == (3, 3)

# %% [markdown] exercise
# **1.** Add.


# %% exercise
def add(a: int, b: int) -> int:
    """a + b."""
    raise NotImplementedError


def mark_add(answer):
    expect(answer(2, 3), 5, "add(2, 3)")
'''


@pytest.fixture
def small_lesson(tmp_path):
    """Writes the lesson, with some of its text changed, and reads it."""

    def write(*changes: tuple[str, str], name: str = "01_small.py"):
        text = TEXT
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return read_lesson(tmp_path / name)

    return write


@pytest.fixture
def lesson(small_lesson):
    """The lesson as it is."""
    return small_lesson()
