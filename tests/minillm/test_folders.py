"""A file is put in its place whole, or not at all."""

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


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    for path in (Path("."), tmp_path / "nowhere" / "file", tmp_path):
        with pytest.raises(OSError, match=f"'{path}'"), whole(path) as draft:
            draft.write_text("x")
    assert list(tmp_path.iterdir()) == []
