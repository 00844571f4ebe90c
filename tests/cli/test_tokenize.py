"""`minillm tokenize` shows the ids that a text has, and the text that they have."""

import ast

import files
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import minillm
from minillm.cli import main
from minillm.cli.tokenize import shown


def run(*arguments: str, stdin: str | None = None):
    return CliRunner().invoke(main, ["tokenize", *arguments], input=stdin, prog_name="minillm")


@pytest.fixture(scope="module")
def tokenizer():
    found = minillm.load("tiny-draft").tokenizer
    assert found is not None
    return found


@pytest.mark.parametrize("text", ["Recipe: Tomato Soup", "two\nlines \0\x1b[2J 🙂</s>"])
def test_a_line_is_a_token_and_the_lines_are_the_text(text, tokenizer):
    result = run("tiny-draft", text)
    assert result.exit_code == 0
    lines = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
    assert [int(number) for number, _ in lines] == tokenizer.encode(text)
    assert "\x1b" not in result.output
    parts = [ast.literal_eval(quoted) for _, quoted in lines]
    whole = b"".join(part if isinstance(part, bytes) else part.encode() for part in parts)
    assert whole.decode() == "<s>" + text
    assert result.stderr == f"{len(lines)} tokens\n"


def test_ids_alone_are_one_line_and_plain_knows_no_special_tokens(tokenizer):
    text = "a</s>b"
    assert run("tiny-draft", text, "--ids").stdout == " ".join(map(str, tokenizer.encode(text))) + "\n"
    plain = run("tiny-draft", text, "--ids", "--plain").stdout
    assert plain == " ".join(map(str, tokenizer.encode(text, special=False))) + "\n"
    assert tokenizer.ends[0] not in map(int, plain.split())


def test_standard_input_is_a_text():
    given = run("tiny-draft", "one\ntwo").stdout
    assert (
        run("tiny-draft", stdin="one\ntwo\n").stdout == run("tiny-draft", "-", stdin="one\ntwo\n").stdout == given
    )


def test_what_is_wrong_is_said_in_a_line(tmp_path):
    for arguments, words in (
        (("nowhere", "x"), "neither a file"),
        ((str(files.write_folder(tmp_path / "none")), "x"), "has no tokenizer"),
        (("tiny-draft", "x", "--count"), "--count"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        assert words in result.stderr
        assert len(result.stderr.splitlines()) == 1


@given(st.binary(max_size=8))
def test_what_is_shown_is_printable_and_says_the_bytes(raw):
    line = shown(raw)
    assert line.isprintable()
    value = ast.literal_eval(line)
    assert (value.encode() if isinstance(value, str) else value) == raw
