"""An exported model runs where minillm is not installed, and says what it says here."""

import os
import subprocess
import sys
import zipfile

import jax
import jax.export
import numpy as np
import pytest
from families import FAMILIES

import minillm
from minillm import laws
from minillm.compile import export as exporting
from minillm.compile import runner
from minillm.compile.export import check_exportable, export
from minillm.compile.steps import Work
from minillm.errors import UserError

ALONE = """
import runpy, sys
sys.modules["minillm"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
WORK = Work(batch=3, context=24)  # prompts are read 16 tokens at a time


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    model = minillm.init(FAMILIES["mistral"] | {"num_hidden_layers": 1, "sliding_window": 10}).model
    path = tmp_path_factory.mktemp("export") / "model.zip"
    export(model, WORK, "cpu", path)
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    return model, path


@pytest.mark.usefixtures("quick_programs")
def test_it_says_the_same_without_minillm(exported):
    model, path = exported
    texts, steps = [[5, 9, 2], [*range(3, 22)]], 4  # the second is read in two pieces
    told = [",".join(map(str, text)) for text in texts]
    ran = subprocess.run(
        [sys.executable, "-c", ALONE, str(path), *told, "--tokens", str(steps)],
        env=os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert [[int(token) for token in line.split()] for line in ran.stdout.splitlines()] == greedy(
        model, texts, steps
    )


def greedy(model, texts, steps):
    """The likeliest tokens to follow each text, which is read anew for each of them."""
    n, rows = np.array([len(text) for text in texts], np.int32), np.zeros((len(texts), WORK.context), np.int32)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = text
    every = np.arange(len(texts))
    for _ in range(steps):
        rows[every, n] = np.argmax(laws.read_whole(model, rows, n)[every, n - 1], axis=1)
        n += 1
    return [row[end - steps : end].tolist() for row, end in zip(rows, n, strict=True)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["1"] * 4, "4 texts, expected at most 3"), (["1", "--tokens", "24"], "than 24 tokens")],
)
def test_what_it_cannot_do_it_says(exported, arguments, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(exported[1]), *arguments])
    with pytest.raises(SystemExit, match="2"):
        runner.main()
    assert words in capsys.readouterr().err


def test_it_is_written_for_the_platform_that_was_asked_for(tmp_path):
    export(minillm.init(FAMILIES["phi3"] | {"num_hidden_layers": 1}).model, WORK, "tpu", tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as file:
        assert jax.export.deserialize(bytearray(file.read("decode.jax"))).platforms == ("tpu",)


def test_a_run_that_is_stopped_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "RUNNER", tmp_path / "nowhere.py")
    with pytest.raises(FileNotFoundError):
        export(minillm.init(FAMILIES["phi3"]).model, WORK, "cpu", tmp_path / "model.zip")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'minillm\[export\]'"):
        check_exportable()
