"""Models of the hub: fetched without pickles into the library's own cache, found there without a network."""

import json
import os
import subprocess
import sys

import files
import pytest
from click.testing import CliRunner
from servers import Shelf, serving

import minillm
from minillm.checkpoint import hub
from minillm.cli import main
from minillm.errors import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "hub").mkdir()
    return tmp_path / "hub"


def lay(cache, repo="org/tiny", ref: str | None = "main", commit=COMMIT):
    """A snapshot as the hub's library lays it out."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    files.write_folder(folder / "snapshots" / commit)
    if ref is not None:
        (folder / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (folder / "refs" / ref).write_text(commit)
    return folder / "snapshots" / commit


def test_a_model_in_the_hubs_cache_is_found_by_its_name(cache):
    folder = lay(cache)
    assert hub.cached("hf:org/tiny") == folder
    assert minillm.load("hf:org/tiny").config.v == files.CONFIG["vocab_size"]
    result = CliRunner().invoke(main, ["info", "hf:org/tiny"])
    assert str(folder) in result.stdout


@pytest.mark.parametrize(("ref", "revision"), [("v1.0", "v1.0"), ("refs/pr/7", "refs/pr/7"), (None, COMMIT)])
def test_a_revision_is_a_branch_a_request_or_a_commit(cache, ref, revision):
    folder = lay(cache, ref=ref)
    assert hub.cached(f"hf:org/tiny@{revision}") == folder
    with pytest.raises(UserError, match="minillm pull hf:org/tiny"):
        hub.cached("hf:org/tiny")


def test_the_list_has_what_is_in_the_hubs_cache_and_may_be_a_model(cache):
    lay(cache)
    lay(cache, "org/other", "v1")
    (lay(cache, "org/encoder") / "model.safetensors").unlink()
    assert [one.name for one in hub.cached_models()] == ["hf:org/other@v1", "hf:org/tiny"]
    listed = CliRunner().invoke(main, ["list"]).stdout
    assert "hf:org/other@v1" in listed
    assert "encoder" not in listed


def test_without_a_cache_none_is_listed(cache):
    cache.rmdir()
    assert list(hub.cached_models()) == []


@pytest.mark.parametrize(
    "name",
    "hf: hf:tiny hf:/etc/passwd hf:org/../x hf:../../x hf:org/tiny@ hf:org/tiny@../../x hf:org/tiny@/etc/x "
    "hf:org/tiny@a/../b hf:./tiny hf:org/ti\x1b[31mny hf:org/tïny hf:a/b/c hf:org/tiny@.. hf:org/tiny\n".split(" "),
)
def test_a_name_that_is_none_is_refused_before_anything_is_read(cache, name):
    for look in (hub.cached, hub.pull_from_hub, minillm.load):
        with pytest.raises(UserError, match="expected hf:ORG/REPO"):
            look(name)


def test_who_leaves_out_the_prefix_is_told():
    for arguments in (["pull", "org/tiny"], ["info", "org/tiny"]):
        assert ", or hf:org/tiny of the hub" in CliRunner().invoke(main, arguments).stderr
    assert "hub" not in CliRunner().invoke(main, ["info", "tiny"]).stderr


def test_without_the_library_one_sentence_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert list(hub.cached_models()) == []
    for arguments in (["pull", "hf:org/tiny"], ["info", "hf:org/tiny"]):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2
        assert "pip install 'minillm[hub]'" in result.stderr


def offer(shelf: Shelf, repo: str, contents: dict[str, bytes]) -> None:
    """Have the server answer for a repository as the hub does."""
    api, tree = f"/api/models/{repo}", []
    for name, content in contents.items():
        path = f"/{repo}/resolve/{COMMIT}/{name}"
        shelf.files[path] = content
        shelf.headers[path] = {"X-Repo-Commit": COMMIT, "ETag": f'"{name}"', "Accept-Ranges": "bytes"}
        tree.append({"type": "file", "path": name, "size": len(content), "oid": name})
    about = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in contents]}
    shelf.files[f"{api}/revision/main"] = json.dumps(about).encode()
    shelf.files[f"{api}/tree/{COMMIT}"] = json.dumps(tree).encode()
    for path in (f"{api}/revision/main", f"{api}/tree/{COMMIT}"):
        shelf.headers[path] = {"Content-Type": "application/json"}
    shelf.headers[f"{api}/revision/nowhere"] = {"X-Error-Code": "RevisionNotFound"}


SCRIPT = """
import sys
from minillm.checkpoint.hub import pull_from_hub
from minillm.errors import UserError
for name in sys.argv[1:]:
    try:
        print(pull_from_hub(name))
    except UserError as error:
        print(error)
"""


def pull_all(url: str, home, *names: str) -> list[str]:
    """What pulling each gives, in a process that takes this machine for the hub."""
    environ = os.environ | {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environ.pop("HF_HUB_CACHE", None)
    result = subprocess.run([sys.executable, "-c", SCRIPT, *names], env=environ, capture_output=True, text=True)
    assert not result.returncode, result.stderr
    return result.stdout.splitlines()


def test_what_is_fetched_is_the_model_and_nothing_that_runs(tmp_path, cache):
    folder = files.write_folder(tmp_path / "origin")
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    others = [
        "pytorch_model.bin",
        "model.pt",
        "onnx/config.json",
        "consolidated.safetensors",
        "README.md",
        "run.py",
    ]
    with serving({}) as shelf:
        offer(shelf, "org/tiny", whole | dict.fromkeys(others, b"no"))
        offer(shelf, "org/pickled", {"config.json": b"{}", "pytorch_model.bin": b"no"})
        shelf.headers["/api/models/org/none/revision/main"] = {"X-Error-Code": "RepoNotFound"}
        found = pull_all(shelf.url, tmp_path, "hf:org/tiny", "hf:org/pickled", "hf:org/none", "hf:org/tiny@nowhere")
    assert found[0] == str(cache / "models--org--tiny" / "snapshots" / COMMIT)
    assert found[1].startswith("hf:org/pickled has no .safetensors")
    assert found[2].startswith("hf:org/none is not on the hub")
    assert found[3] == "hf:org/tiny@nowhere: the repository has no such revision"
    assert {path.name: path.read_bytes() for path in hub.cached("hf:org/tiny").iterdir()} == whole


def test_without_a_network_pulling_is_one_sentence(tmp_path):
    with serving({}) as shelf:
        pass
    (found,) = pull_all(shelf.url, tmp_path, "hf:org/tiny")
    assert found == "cannot reach the hub to fetch hf:org/tiny; are you offline?"
