"""The static site: a page a lesson, everything inside it."""

import re

import pytest
from click.testing import CliRunner

from tutorials import build

DRAWN = """
# %% [markdown]
# ## A picture

# %%
from minillm.lessons import picture

print("a line of two points:")
picture("01_line", lambda figure: figure.subplots().plot([1, 2]))
"""


@pytest.fixture
def pages(tmp_path, monkeypatch, small_lesson):
    """The pages of two small lessons, by name."""
    monkeypatch.setenv("MINILLM_CACHE", str(tmp_path / "cache"))
    exercise = "# %% [markdown] exercise"
    title = ("A small lesson", "A lesson with <angles>")
    found = [
        small_lesson(title, (exercise, f"{DRAWN}\n{exercise}")),
        small_lesson(title, ("# # 1.", "# # 2."), name="02_other.py"),
    ]
    monkeypatch.setattr(build, "lessons", lambda: found)
    result = CliRunner().invoke(build.main, ["--output", str(tmp_path / "site")], catch_exceptions=False)
    assert result.exit_code == 0
    return {path.name: path.read_text() for path in (tmp_path / "site").iterdir()}


def test_a_page_has_prose_code_output_and_the_picture_in_it(pages):
    page = pages["01_small.html"]
    assert "Some <strong>bold</strong> numbers." in page
    assert "<pre class=out>twice: 10.0</pre>" in page
    assert '<pre class=out>a line of two points:</pre>\n<div class=picture><img src="data:image/png;base64,' in page
    assert "NotImplementedError" in page
    assert "mark_add" not in page
    assert "lesson with &lt;angles&gt;</title>" in page


def test_pages_lead_to_each_other_and_nowhere_else(pages):
    assert set(pages) == {"index.html", "01_small.html", "02_other.html"}
    assert 'rel="next" href="02_other.html"' in pages["01_small.html"]
    assert 'rel="prev" href="01_small.html"' in pages["02_other.html"]
    for page in pages.values():
        assert set(re.findall(r'href="?([^">]+)', page)) <= set(pages)
        assert not re.search(r'(src|href)="?https?:', page)


def test_a_lesson_that_fails_has_no_page(tmp_path, monkeypatch, small_lesson):
    monkeypatch.setattr(build, "lessons", lambda: [small_lesson(("(3, 3)", "(4, 4)"))])
    with pytest.raises(AssertionError):
        CliRunner().invoke(build.main, ["--output", str(tmp_path / "site")], catch_exceptions=False)
    assert not (tmp_path / "site" / "01_small.html").exists()
