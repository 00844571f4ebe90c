"""`minillm tutorial`: the list, stubs and marks, and no stepping without a terminal."""

import pytest
from click.testing import CliRunner

from minillm.cli import main
from minillm.lessons.lesson import FOLDER, lessons
from minillm.lessons.progress import Progress, read_progress, write_progress


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILLM_CACHE", str(tmp_path / "cache"))


def run(*arguments: str):
    return CliRunner().invoke(main, ["tutorial", *arguments], prog_name="minillm")


def test_the_list_has_every_lesson_with_what_one_learns_and_how_far_one_came():
    write_progress("01_tokens", Progress(steps=3, solved=["text_of"]))
    result = run()
    assert result.exit_code == 0
    for lesson in lessons():
        assert lesson.title in result.stdout
        assert lesson.promise in result.stdout
    assert f"(3 of {len(lessons()[0].steps)} steps taken" in result.stdout
    assert "1 of 3 exercises" in result.stdout


def test_stepping_needs_a_terminal_and_says_what_does_not():
    result = run("2")
    assert result.exit_code == 2
    assert "minillm tutorial 2 --all" in result.stderr


def test_what_cannot_be_meant_is_refused(tmp_path):
    for arguments, words in (
        (["99"], "lesson is 99, expected one of 1, 2"),
        (["1", "--all", "--restart"], "--all does not go with --restart"),
        (["--check", "x.py"], "--check needs the number of a lesson"),
        (["1", "--check", str(tmp_path / "x.py")], "--stubs"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        assert words in result.stderr


def test_stubs_are_written_once_and_marked_as_not_yet_written(tmp_path):
    path = tmp_path / "answers.py"
    assert run("2", "--stubs", str(path)).exit_code == 0
    before = path.read_text()
    again = run("2", "--stubs", str(path))
    assert again.exit_code == 2
    assert "is there already" in again.stderr
    assert path.read_text() == before
    result = run("2", "--check", str(path))
    assert result.exit_code == 1
    assert result.stdout.count("still a stub") == 3
    assert "0 of 3 right" in result.stdout


def test_right_answers_are_remembered():
    solutions = FOLDER.resolve().parent / "tests" / "tutorials" / "solutions" / "02_attention.py"
    result = run("2", "--check", str(solutions))
    assert result.exit_code == 0
    assert "3 of 3 right" in result.stdout
    assert len(read_progress()["02_attention"].solved) == 3


def test_all_runs_without_a_terminal(tmp_path, monkeypatch, capfd):
    path = tmp_path / "01_small.py"
    path.write_text("# %% [markdown]\n# # 1. Small\n#\n# How.\n\n# %%\nprint(6 * 7)\n")
    monkeypatch.setattr("minillm.lessons.lesson.FOLDER", tmp_path)
    result = run("--all")
    assert result.exit_code == 0
    assert "\n42\n" in capfd.readouterr().out  # of another process
    assert read_progress()["01_small"].steps == 1
    path.write_text(path.read_text() + "\n# %%\nraise ValueError\n")
    assert isinstance(run("1", "--all").exception, ValueError)
    assert read_progress()["01_small"].steps == 1


def test_a_progress_file_that_is_damaged_is_no_progress(tmp_path):
    write_progress("01_tokens", Progress(2))
    for text in ("", "[1, 2]", '{"01_tokens": {"steps": 1, "colour": 2}}'):
        (tmp_path / "cache" / "tutorial.json").write_text(text)
        assert read_progress() == {}
