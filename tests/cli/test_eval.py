"""`minillm eval` prints what was measured, goes on where it was stopped, and names what it cannot use."""

import json
from typing import Any, cast

import files
import jax
import numpy as np
import pytest
from agreement import QUICK
from click.testing import CliRunner

import minillm
from minillm import evaluate
from minillm.cli import main
from minillm.cli.eval import writing
from minillm.evaluate import quality

TEXTS = [f"Text number {i}, {'x' * i}.\n" for i in range(6)]  # of a length that fills the same program
PROGRAM = jax.jit(cast(Any, evaluate.measured).__wrapped__, compiler_options=QUICK)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(evaluate, "measured", PROGRAM)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return files.write_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return files.write_gguf(tmp_path_factory.mktemp("other") / "other.gguf", seed=1)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def run(*arguments):
    return CliRunner().invoke(main, ["eval", *map(str, arguments)])


def result_of(*arguments) -> dict:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def assert_refused(result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr


def stop_after(monkeypatch, units: int) -> None:
    """Ctrl-C when so many units are done."""

    def interrupted(*arguments):
        for done, tally in enumerate(TALLIED(*arguments)):
            if done == units:
                raise KeyboardInterrupt
            yield tally

    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(evaluate, "tallied", interrupted)
    monkeypatch.setattr("minillm.cli.leave", leave)


TALLIED = evaluate.tallied


def test_the_figures_are_those_of_the_library(model, other, text):
    found = result_of(model, "--against", other, "--text", text, "--window", 32)
    one, two = minillm.load(model), minillm.load(other)
    assert one.tokenizer is not None
    for name, figure in quality(one.model, one.tokenizer, TEXTS, 32, two.model).items():
        assert found[name] == figure._asdict(), name
    assert (found["documents"], found["units"], found["bytes"]) == (6, 6, sum(map(len, TEXTS)))
    assert (found["model"], found["against"], found["quant"], found["window"]) == (str(model), str(other), None, 32)


def test_people_see_every_figure_with_its_interval(model, other, text):
    result = run(model, "--against", other, "--text", text)
    assert result.exit_code == 0
    size = sum(map(len, TEXTS))  # a token a byte, and an end a text
    counted = f"{text}: 6 documents, {size} bytes, {size + 6} tokens; windows of 128"
    assert result.stdout.splitlines()[:2] == [f"{model} against {other}", counted]
    figures = [line for line in result.stdout.splitlines() if " to " in line]
    assert [line[:26].strip() for line in figures] == [
        "perplexity",
        "bits per byte",
        "reference perplexity",
        "reference bits per byte",
        "delta perplexity",
        "ln perplexity ratio",
        "kld mean",
        "kld p99",
        "same top",
    ]
    assert result.stdout.splitlines()[-1] == "95 % confidence, by 6 documents"


def test_a_recipe_is_priced_against_the_model_itself(model, text):
    found = result_of(model, "--quant", "int4", "--text", text)
    assert found == result_of(model, "--quant", "int4", "--against", model, "--text", text)
    assert found["kld_mean"]["low"] > 0
    assert found["reference_perplexity"] == result_of(model, "--text", text)["perplexity"]


def test_a_plain_file_is_one_document_with_windows_for_units(model, tmp_path):
    (tmp_path / "plain.txt").write_text("x" * 100)
    found = result_of(model, "--text", tmp_path / "plain.txt", "--window", 32)
    assert (found["documents"], found["tokens"], found["units"]) == (1, 101, 1 + -(-(101 - 32) // 16))
    short = run(model, "--text", tmp_path / "plain.txt")
    assert short.stdout.splitlines()[-1] == "no interval: one window"
    assert " to " not in short.stdout


def test_the_bundled_texts_are_the_default():
    result = run("tiny-draft", "--window", "9999")  # refused after they were read
    assert_refused(result, "--window is 9999, but the context is 512")


@pytest.mark.parametrize("name", ["texts.jsonl", "plain.txt"])
@pytest.mark.parametrize("units", [0, 1, 3])
def test_a_run_that_is_stopped_goes_on_to_the_same_bytes(model, other, text, tmp_path, monkeypatch, name, units):
    (tmp_path / "plain.txt").write_text("".join(TEXTS))
    options = [model, "--against", other, "--text", tmp_path / name, "--window", 32, "--output"]
    whole, target, part = (tmp_path / one for one in ("whole.json", "out.json", "out.json.part"))
    assert run(*options, whole).exit_code == 0
    with monkeypatch.context() as patch:
        stop_after(patch, units)
        stopped = run(*options, target)
    assert stopped.exit_code == 130
    assert ("out.json.part; the same command goes on" in stopped.stderr) == part.exists() == (units > 0)
    assert not target.exists()
    assert run(*options, target).exit_code == 0
    assert target.read_bytes() == whole.read_bytes()
    assert [path.name for path in tmp_path.glob("out*")] == ["out.json"]


def test_without_an_output_a_stopped_run_says_that_nothing_is_kept(model, text, monkeypatch):
    stop_after(monkeypatch, 2)
    result = run(model, "--text", text)
    assert result.exit_code == 130
    assert "nothing is kept; with --output FILE" in result.stderr


@pytest.mark.parametrize("changed", ["text", "model", "options", "part"])
def test_another_run_does_not_go_on_with_it(text, tmp_path, monkeypatch, changed):
    model, target = files.write_gguf(tmp_path / "model.gguf"), tmp_path / "out.json"
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        run(model, "--text", text, "--output", target)
    part = tmp_path / "out.json.part"
    if changed == "text":
        text.write_text(text.read_text().replace("Text number 5", "Text Number 5"))
    elif changed == "model":
        files.write_gguf(model, seed=1)
    elif changed == "part":
        part.write_text('{"job": "cut o')
    left = part.read_bytes()
    window = 32 if changed == "options" else 128
    result = run(model, "--text", text, "--output", target, "--window", window)
    assert_refused(result, "out.json.part is what is left of another run: text, models or options differ")
    assert part.read_bytes() == left


def test_what_is_there_is_not_overwritten(model, text, tmp_path):
    (tmp_path / "out.json").write_text("mine")
    assert_refused(run(model, "--text", text, "--output", tmp_path / "out.json"), "out.json is there already")
    assert (tmp_path / "out.json").read_text() == "mine"


def test_two_runs_do_not_write_one_file(model, text, tmp_path):
    with writing(tmp_path / "out.json"):
        refused = run(model, "--text", text, "--output", tmp_path / "out.json")
    assert_refused(refused, "out.json is being written by another run")
    assert [path.name for path in tmp_path.glob("out*")] == []


def test_texts_that_cannot_be_measured_on_are_named(model, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "bad.jsonl").write_text('{"text": "good"}\n{"prompt": "bad"}\n')
    assert_refused(run(model, "--text", tmp_path / "empty.txt"), "empty.txt is empty, expected text")
    assert_refused(run(model, "--text", tmp_path / "latin.txt"), "latin.txt is not UTF-8: byte 3 is 0xe9")
    assert_refused(run(model, "--text", tmp_path / "bad.jsonl"), "bad.jsonl, line 2 has no text")
    assert_refused(run(model, "--text", tmp_path / "none.txt"), "none.txt is no file")
    assert_refused(run(model, "--text", tmp_path), "is no file")


def test_models_that_cannot_be_measured_are_named(model, text, tmp_path):
    folder = files.write_folder(tmp_path / "no-tokenizer")
    assert_refused(run(folder, "--text", text), "no-tokenizer has no tokenizer")
    assert_refused(run(model, "--against", folder, "--text", text), "no-tokenizer has no tokenizer")
    assert_refused(run(model, "--against", "tiny-draft", "--text", text), "tiny-draft has other tokens than")
    assert_refused(run("nowhere", "--text", text), "model 'nowhere' is neither a file")
    assert_refused(run(model, "--quant", "q0", "--text", text), "recipe is 'q0'")
    assert_refused(run(model, "--window", 2, "--text", text), "--window")


def test_a_model_with_weights_that_are_no_numbers_is_refused(tmp_path, monkeypatch, text):
    tensors = files.hf_tensors()
    tensors["model.norm.weight"][3] = np.nan
    monkeypatch.setattr(files, "hf_tensors", lambda seed: tensors)
    broken = files.write_gguf(tmp_path / "broken.gguf")
    assert_refused(run(broken, "--text", text), "the model has scores that are not finite near byte 0 of")
