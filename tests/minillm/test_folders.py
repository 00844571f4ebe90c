"""A file is put in its place whole, or not at all."""

import subprocess
import sys
from pathlib import Path

import pytest

from minillm.folders import whole


@pytest.mark.parametrize("before", [None, "old"])
def test_a_file_appears_when_it_is_whole_and_a_failure_changes_nothing_and_names_it(tmp_path, before):
    path = tmp_path / "file"
    if before is not None:
        path.write_text(before)
    with pytest.raises(OSError, match=rf"No space left on device: '{path}'"), whole(path) as draft:
        draft.write_text("half")
        raise OSError(28, "No space left on device")
    with pytest.raises(KeyboardInterrupt), whole(path) as draft:
        draft.write_text("half")
        raise KeyboardInterrupt
    assert [one.read_text() for one in tmp_path.iterdir()] == ([] if before is None else [before])
    with whole(path) as draft:
        draft.write_text("new")
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("file", "new")]


def test_a_folder_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "folder"
    with pytest.raises(KeyboardInterrupt), whole(path) as draft:
        draft.mkdir()
        (draft / "half").touch()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with whole(path) as draft:
        draft.mkdir()
        (draft / "file").touch()
    assert [one.name for one in path.iterdir()] == ["file"]
    with pytest.raises(OSError, match=f"'{path}'"), whole(path) as draft:
        draft.mkdir()
    assert list(tmp_path.iterdir()) == [path]


# Leaves half a file and half a folder, and is then killed, or told to go on.
HALF = """
import os, pathlib, signal, sys
from minillm.folders import whole
with whole(pathlib.Path("file")) as file, whole(pathlib.Path("folder")) as folder:
    file.write_text(sys.argv[1])
    folder.mkdir()
    print("half", flush=True)
    input() == "on" or os.kill(os.getpid(), signal.SIGKILL)
"""


def half(folder: Path, text: str) -> subprocess.Popen:
    """A process that is in the midst of it."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", HALF, text], cwd=folder, **pipes)
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    return process


def test_what_a_killed_process_left_goes_with_the_next_and_one_that_is_at_it_is_not_disturbed(tmp_path):
    at_it, killed = half(tmp_path, "theirs"), half(tmp_path, "never")
    for name in ("file.txt.part", "file.1.part", "other.part"):  # of somebody else
        (tmp_path / name).touch()
    killed.communicate("off")
    assert len(list(tmp_path.iterdir())) == 7
    half(tmp_path, "ours").communicate("on")
    assert len(list(tmp_path.iterdir())) == 7  # those of the killed have gone
    assert (tmp_path / "file").read_text() == "ours"
    (tmp_path / "folder").rmdir()
    at_it.communicate("on")
    assert at_it.returncode == 0
    assert (tmp_path / "file").read_text() == "theirs"
    assert {one.name for one in tmp_path.glob("*.part")} == {"file.txt.part", "file.1.part", "other.part"}


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    for path in (Path("."), tmp_path / "nowhere" / "file", tmp_path):
        with pytest.raises(OSError, match=f"'{path}'"), whole(path) as draft:
            draft.write_text("x")
    assert list(tmp_path.iterdir()) == []
