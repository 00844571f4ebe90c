"""`minillm trace`: one file, or one line that says why not."""

import click.testing
import files
import pytest

from minillm.cli import main


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(files.write_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf"))


def trace(model, *arguments: str):
    return click.testing.CliRunner().invoke(main, ["trace", "--model", model, *arguments], prog_name="minillm")


def test_it_writes_one_file_and_says_what_is_in_it(model, tmp_path):
    result = trace(model, "ab", "-o", str(tmp_path / "t.html"), "--max-tokens", "2", "--temperature", "0", "--chat")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("2 passes, 8 + 2 tokens, ")
    assert [path.name for path in tmp_path.iterdir()] == ["t.html"]
    assert (tmp_path / "t.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["x" * 200, "-o", "t.html"], "128"),
        (["ab"], "--output"),
        (["ab", "-o", "none/t.html"], "none: no such folder for t.html"),
        (["ab", "-o", "t.html", "--draft", "guess"], "draft is 'guess'"),
        (["ab", "-o", "t.html", "--quant", "q99"], "q99"),
        (["ab", "-o", "t.html", "--max-tokens", "33"], "max_tokens is 33, expected 1 to 32"),
        (["", "-o", "t.html"], "prompt is empty"),
    ],
)
def test_what_cannot_be_traced_is_refused_in_one_line_and_leaves_no_file(
    arguments, words, model, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    result = trace(model, *arguments)
    assert result.exit_code == 2, result.output
    assert len(result.stderr.strip().splitlines()) == 1
    assert words in result.stderr
    assert list(tmp_path.iterdir()) == []
