"""`minillm compile`: plans without a compiler, says what it assumes, and refuses in one line."""

import json
import math
import re
import zipfile
from contextlib import chdir

import files
import jax
import ml_dtypes  # noqa: F401  (NumPy then knows bfloat16)
import numpy as np
import pytest
from click.testing import CliRunner
from examples import ROOT
from families import FAMILIES

from minillm.cli import main
from minillm.compile import export, topology


@pytest.fixture(autouse=True)
def _no_compilers(monkeypatch):
    """As where no extra is installed, whether it is here or not; but what export needs is."""
    monkeypatch.setattr(topology, "find_spec", lambda name: None)
    monkeypatch.setattr(export, "find_spec", lambda name: "there")
    with jax.numpy_dtype_promotion("standard"):  # as for users
        yield


@pytest.fixture
def config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(FAMILIES["phi3"]))
    return str(tmp_path / "config.json")


def compile_(*arguments: str):
    return CliRunner().invoke(main, ["compile", *arguments], prog_name="minillm")


def test_a_config_is_planned_without_a_compiler_and_says_how_to_get_one(tmp_path):
    (tmp_path / "experts.json").write_text(json.dumps(FAMILIES["mixtral"]))
    options = "--target tpu-v5e --batch 8 --mesh data=2,model=2 --price 1.2"
    result = compile_(str(tmp_path / "experts.json"), *options.split())
    assert result.exit_code == 0, result.output
    for words in (
        "mixtral, 2 layers, 2.002 million parameters",
        "8 x 64 tokens on 4 x tpu-v5e (data=2,model=2), bfloat16",
        "of its 17.18 GB",
        "1 all-gather, 5 all-reduce",
        "at most",
        "a million",
        "nothing was run",
        "equally often",
        "$1.20 a device and hour",
        "pip install 'minillm[aot-tpu]'",
    ):
        assert words in result.stdout, words
    assert "compiles" not in result.stdout


def test_the_price_of_tokens_follows_from_their_speed(config):
    result = compile_(config, "--target", "h100", "--price", "3600")
    line = r"decoding +at most ([\d,]+) tokens/s, at least \$([\d.,]+) a million"
    ((speed, price),) = re.findall(line, result.stdout)
    assert float(price) == pytest.approx(1e6 / int(speed.replace(",", "")), rel=0.01)


def test_a_context_beyond_the_models_is_planned_and_said(config):
    result = compile_(config, "--target", "h100", "--context", "1000000")
    assert result.exit_code == 0, result.output
    assert "1 x 1,000,000 tokens" in result.stdout
    assert "made for 64 tokens" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--target", "tpu-v9"], "target is 'tpu-v9', expected one of tpu-v5e"),
        (["--target", "h100", "--mesh", "model=3"], "model=3, which does not divide"),
        (["--target", "h100", "--mesh", "rows=2"], "mesh is 'rows=2'"),
        (["--target", "h100", "--mesh", "model=2", "--quant", "q4_k"], "128 of the 256 inputs of attention.out"),
        (["--target", "h100", "--quant", "q99"], "q99"),
        (["--target", "h100", "--hlo", "x.txt"], "pip install 'minillm[aot-cuda]'"),
        (["--target", "h100", "--hlo", "none/x.txt"], "none: no such folder"),
        (["--target", "h100", "--export", "x.zip"], "has no weights to export"),
        (["--target", "cpu"], "give --export FILE, or another target"),
        (
            ["--target", "h100", "--context", "2000000", "--batch", "65536"],
            "GB of memory for 65536 x 2000000 tokens",
        ),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(arguments, words, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = compile_(config, *arguments)
    assert result.exit_code == 2, result.output
    assert len(result.stderr.strip().splitlines()) == 1
    assert words in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_positions_that_are_learned_end_where_the_model_does(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(FAMILIES["gpt2"]))
    result = compile_(str(tmp_path / "config.json"), "--target", "h100", "--context", "65")
    assert result.exit_code == 2
    assert "positions for 64 tokens only" in result.stderr


def test_an_export_has_the_checkpoints_weights_as_they_were_asked_for(tmp_path):
    model, file = files.write_gguf(tmp_path / "tiny.gguf"), tmp_path / "tiny.zip"
    result = compile_(str(model), "--target", "cpu", "--export", str(file), "--context", "16", "--quant", "int8")
    assert result.exit_code == 0, result.output
    assert f"run it with: python {file}" in result.stdout
    with zipfile.ZipFile(file) as made:
        about = json.loads(made.read("about.json"))
        assert {dtype for _, dtype in about["weights"]} == {"int8", "float32", "bfloat16"}  # codes, scales, norms
        for i, (shape, dtype) in enumerate(about["weights"]):
            assert len(made.read(f"weights/{i}")) == math.prod(shape) * np.dtype(dtype).itemsize


@pytest.mark.slow
def test_the_readme_shows_what_it_says():
    page = (ROOT / "minillm" / "README.md").read_text()
    ((options, shown),) = re.findall(r"llama-3-70b\.json\), with `(.*?)`:\n\n```\n(.*?)```", page, re.DOTALL)
    with chdir(ROOT):
        result = compile_("bench/configs/llama-3-70b.json", *options.split())
    assert result.stdout.startswith(shown), result.output
