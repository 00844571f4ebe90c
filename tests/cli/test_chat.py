"""`minillm chat`: a line a turn, and what begins with / is done."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import click.testing
import files
import pytest

from minillm.cli import main

pytestmark = pytest.mark.usefixtures("quick_programs")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(files.write_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf"))


def run(*arguments: str, stdin: str | bytes = ""):
    return click.testing.CliRunner().invoke(main, arguments, input=stdin, prog_name="minillm")


def talk(tiny, *lines: str, options: tuple[str, ...] = ()):
    options = ("--temperature", "0", "--max-tokens", "4", *options)
    return run("chat", tiny, *options, stdin="".join(line + "\n" for line in lines))


def generate(tiny, question: str, *options: str) -> str:
    """The same question, asked alone."""
    options = ("--chat", "--temperature", "0", "--max-tokens", "4", "--json", *options)
    return json.loads(run("generate", "--model", tiny, *options, question).stdout)["text"]


def test_a_pipe_gets_the_answers_and_nothing_else(tiny, tmp_path):
    saved = tmp_path / "talk.json"
    result = talk(
        tiny, "hello", "", "and\\", "more", f"/save {saved}", "/quit", "never", options=("--system", "be")
    )
    assert result.exit_code == 0, result.output
    messages = json.loads(saved.read_text("utf-8"))
    assert [one["role"] for one in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert [one["content"] for one in messages[:4:2]] == ["be", messages[2]["content"]]
    assert [messages[1]["content"], messages[3]["content"]] == ["hello", "and\nmore"]
    assert result.stdout == "".join(one["content"] + "\n" for one in messages if one["role"] == "assistant")
    assert messages[2]["content"] == generate(tiny, "hello", "--system", "be")
    assert [path.name for path in tmp_path.iterdir()] == ["talk.json"]


def test_reset_begins_anew_and_system_says_with_what(tiny):
    lines = ("hello", "/reset", "hello", "/system be", "hello", "/system", "hello")
    alone, be = generate(tiny, "hello"), generate(tiny, "hello", "--system", "be")
    assert talk(tiny, *lines).stdout == "".join(one + "\n" for one in (alone, alone, be, alone))


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["/bye"], "/bye is no command; /help lists them"),
        (["/save"], "/save needs the name of a file"),
        (["/save /nowhere/at/all.json"], "cannot write /nowhere/at/all.json: No such file"),
        (["x" * 500], "the conversation has 507 tokens, but the context is 128; /reset it"),
    ],
)
def test_what_cannot_be_done_ends_a_pipe_with_a_line(tiny, lines, reason):
    result = talk(tiny, *lines)
    assert result.exit_code == 2
    assert reason in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_models_and_inputs_that_cannot_chat_are_refused(tiny, tmp_path, monkeypatch):
    assert "no chat template" in run("chat", str(files.write_folder(tmp_path / "folder"))).stderr
    result = run("chat", tiny, stdin=b"caf\xe9\n")
    assert result.exit_code == 2
    assert "not UTF-8" in result.stderr
    monkeypatch.setenv("MINILLM_CACHE", str(tmp_path))
    assert "run: minillm pull smollm2-135m" in run("chat").stderr


def test_a_system_message_needs_a_chat(tiny):
    result = run("generate", "--model", tiny, "--system", "be", "hello")
    assert result.exit_code == 2
    assert "give --chat as well" in result.stderr


def test_help_lists_the_commands(tiny):
    said = talk(tiny, "/help").stderr
    assert re.findall(r"^/\w+", said, re.M) == ["/reset", "/system", "/save", "/quit", "/help"]


class Terminal:
    """A process that believes somebody sits before it."""

    def __init__(self, *arguments: str, folder):
        self.screen, theirs = pty.openpty()
        hear = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
        script = f"{hear}; runpy.run_module('minillm', run_name='__main__')"
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, "chat", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=os.environ | {"XDG_CACHE_HOME": str(folder), "TERM": "dumb"},
            start_new_session=True,
        )
        os.close(theirs)
        self.seen = b""

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.screen)

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())

    def until(self, pattern: str) -> None:
        """Wait for a text, behind what was waited for before."""
        deadline = time.monotonic() + 120
        while not (found := re.search(pattern.encode(), self.seen, re.DOTALL)):
            assert time.monotonic() < deadline, self.seen
            if select.select([self.screen], [], [], 1)[0]:
                self.seen += os.read(self.screen, 4096)
        self.seen = self.seen[found.end() :]


def test_at_a_terminal_ctrl_c_ends_an_answer_ctrl_d_the_program_and_a_paste_is_one_turn(tmp_path, monkeypatch):
    monkeypatch.setitem(files.CONFIG, "max_position_embeddings", 1 << 20)
    monkeypatch.setenv("MINILLM_CACHE", str(tmp_path / "cache"))
    endless, saved = str(files.write_gguf(tmp_path / "endless.gguf")), tmp_path / "talk.json"
    options = ("--max-tokens", "1000000", "--temperature", "0")
    with Terminal(endless, *options, folder=tmp_path) as seen:
        seen.until("> ")
        seen.type("/bye\n")
        seen.until("no command.*> ")
        seen.type("\x1b[200~hello\nyou\x1b[201~\n")  # as a terminal sends what is pasted
        seen.until(r"you.*\x1b\[\?2004l\r\s*\S")
        seen.process.send_signal(signal.SIGINT)
        seen.until("> ")
        seen.type(f"/save {saved}\n")
        seen.until("2 messages.*> ")
        seen.type("\x04")
        assert seen.process.wait(timeout=60) == 0
    question, answer = json.loads(saved.read_text())
    assert question["content"] == "hello\nyou"
    assert answer["content"]
    remembered = (tmp_path / "cache" / "chat_history").read_text().splitlines()
    assert remembered == ["/bye", "hello", "you", f"/save {saved}"]
