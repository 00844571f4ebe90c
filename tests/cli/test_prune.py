"""`minillm prune`: what is written loads again and is smaller; what is wrong is said before anything is done."""

import json

import click.testing
import files
import jax
import numpy as np
import pytest
from agreement import QUICK

import minillm
from minillm import train
from minillm.cli import main
from minillm.compress import calibration
from minillm.compress import prune as pruning


@pytest.fixture(autouse=True, scope="module")
def _quick():
    """Unoptimised programs."""
    step: dict = {"donate_argnames": "state", "static_argnames": "update"}
    programs = [(calibration, "read", {}), (pruning, "cosines", {}), (train, "train_step", step)]
    with pytest.MonkeyPatch.context() as patch:
        for module, name, options in programs:
            patch.setattr(
                module, name, jax.jit(getattr(module, name).__wrapped__, compiler_options=QUICK, **options)
            )
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("a mill stands where two rivers meet, and nobody remembers who built it. " * 40)
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return files.write_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def prune(model, *arguments):
    arguments = ["prune", str(model), *map(str, arguments)]
    with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
        return click.testing.CliRunner().invoke(main, arguments, prog_name="minillm")


def refused(result, *words):
    assert result.exit_code == 2, result.output
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr
    return True


def test_a_file_becomes_a_smaller_file_with_its_tokenizer(tiny, text, tmp_path):
    out = tmp_path / "out.gguf"
    result = prune(tiny, "--layers", 1, "--heads", 0.5, "--ffn", 0.5, "--text", text, "-o", out)
    assert result.exit_code == 0, result.output
    before, after = minillm.load(tiny), minillm.load(out)
    (attention, mlp), *more = after.config.layers
    assert (attention.h, attention.g, attention.k, mlp.f, more) == (2, 1, 6, 12, [])
    assert before.tokenizer is not None
    assert after.tokenizer is not None
    assert after.tokenizer.encode("hello") == before.tokenizer.encode("hello")
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(lm.shapes)) for lm in (before, after)]
    assert f"{sizes[0]:,} -> {sizes[1]:,} parameters" in result.stdout
    assert "layers that stay: " in result.stdout
    assert out.stat().st_size < tiny.stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


def test_a_bundled_model_is_pruned_and_taught_again_and_stays_a_folder(text, tmp_path):
    out = tmp_path / "out"
    result = prune("tiny-draft", "--ffn", 0.5, "--recover", 2, "--text", text, "-o", out)
    assert result.exit_code == 0, result.output
    assert json.loads((out / "config.json").read_text())["intermediate_size"] == 128
    assert {"tokenizer.model", "tokenizer_config.json"} <= {path.name for path in out.iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # nothing is left of the lessons
    plain = tmp_path / "plain"
    assert prune("tiny-draft", "--ffn", 0.5, "--text", text, "-o", plain).exit_code == 0
    taught, untaught = (np.asarray(minillm.load(one).model.embed.dense()) for one in (out, plain))
    assert not np.array_equal(taught, untaught)


def test_zeros_are_counted(tiny, text, tmp_path):
    result = prune(tiny, "--sparsity", "2:4", "--method", "wanda", "--text", text, "-o", tmp_path / "out.gguf")
    assert result.exit_code == 0, result.output
    assert "50.0% of the numbers in the matrices of its blocks are zero" in result.stdout


def test_a_folder_becomes_a_gguf_file_if_that_is_asked_for(tmp_path):
    result = prune("tiny-draft", "--sparsity", 0.5, "--method", "magnitude", "-o", tmp_path / "out.gguf")
    assert result.exit_code == 0, result.output
    one, other = minillm.load("tiny-draft").tokenizer, minillm.load(tmp_path / "out.gguf").tokenizer
    assert one is not None
    assert other is not None
    assert one.encode("a mill</s>") == other.encode("a mill</s>")


def test_what_does_not_fit_is_refused_before_anything_is_read(tiny, tmp_path):
    out = tmp_path / "out.gguf"
    assert refused(prune(tiny, "-o", out), "nothing is to go", "--ffn")
    assert refused(prune(tiny, "--sparsity", 0.5, "--recover", 9, "-o", out), "--recover would fill the zeros")
    assert refused(prune(tiny, "--ffn", 0.5, "--method", "wanda", "-o", out), "--method says how --sparsity")
    assert refused(prune(tiny, "--ffn", 0.5, "-o", tmp_path / "out"), "comes as a file", ".gguf")
    assert refused(prune(tiny, "--ffn", 0.5, "-o", tiny), "is there already")
    assert refused(prune(tiny, "--sparsity", "half", "-o", out), "--sparsity is 'half'")
    assert refused(prune(tiny, "--ffn", 0.5, "--text", tmp_path / "none", "-o", out), "none is no file")
    assert refused(prune(tiny, "--heads", 0.1, "-o", out), "of 2 groups of heads a layer, a share of 0.1 is 0")
    assert not list(tmp_path.iterdir())


def test_a_model_without_a_tokenizer_has_no_text_to_be_judged_by(tmp_path):
    folder = files.write_folder(tmp_path / "m")
    assert refused(prune(folder, "--ffn", 0.5, "-o", tmp_path / "out"), "has no tokenizer")


def test_a_run_that_was_killed_keeps_what_it_learned_until_it_is_written(tiny, text, tmp_path, monkeypatch):
    import minillm.checkpoint.gguf_writer as writer

    out = tmp_path / "out.gguf"
    arguments = (tiny, "--ffn", 0.5, "--recover", 2, "--text", text, "-o", out)
    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_gguf", lambda *_, **__: 1 / 0)
        assert isinstance(prune(*arguments).exception, ZeroDivisionError)
    (part,) = tmp_path.iterdir()
    assert part.name.startswith("out.gguf.")
    learned = part.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("minillm.train.train_step", lambda *_: 1 / 0)  # there is nothing left to learn
        assert prune(*arguments).exit_code == 0
    assert learned
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]
