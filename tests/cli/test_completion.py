"""The shell completes commands, options and the names of models."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time

import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner

from minillm.cli import main
from minillm.folders import bundled_models


def completed(*words: str) -> list[str]:
    """What bash is told to offer for the last word: a type and a value a line."""
    shell = BashComplete(main, {}, "minillm", "_MINILLM_COMPLETE")
    return [shell.format_completion(item) for item in shell.get_completions(list(words[:-1]), words[-1])]


@pytest.mark.parametrize("command", ["chat", "eval", "info", "prune", "quantize", "tokenize"])
def test_models_are_completed(command):
    assert completed(command, "tiny-m") == ["plain,tiny-mamba", "plain,tiny-moe"]


def test_commands_options_and_files_are_completed_too(tmp_path):
    assert completed("val") == ["plain,validate"]
    assert completed("generate", "--top") == ["plain,--top-k", "plain,--top-p"]
    assert completed("generate", "--dtype", "b") == ["plain,bfloat16"]
    assert set(completed("generate", "--model", "")) >= {f"plain,{name}" for name in bundled_models()}
    assert completed("info", str(tmp_path / "m")) == [f"file,{tmp_path / 'm'}"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_asks_minillm(shell):
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0
    assert f"_MINILLM_COMPLETE={shell}_complete" in result.stdout


@pytest.fixture
def surroundings(tmp_path):
    """The environment of a shell that finds minillm, and a model called hf:org/repo."""
    (tmp_path / "minillm").write_text(f"#!{sys.executable}\nfrom minillm.cli import main\nmain()\n")
    (tmp_path / "minillm").chmod(0o755)
    (tmp_path / "notes.gguf").touch()
    repo, commit = tmp_path / "hub" / "models--org--repo", "0" * 40
    for path, content in {
        "refs/main": commit,
        "refs/v1": commit,
        f"snapshots/{commit}/config.json": "{}",
        f"snapshots/{commit}/model.safetensors": "",
    }.items():
        (repo / path).parent.mkdir(parents=True, exist_ok=True)
        (repo / path).write_text(content)
    path = f"{tmp_path}:{os.environ['PATH']}"
    return os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HOME": str(tmp_path), "PATH": path, "TERM": "dumb"}


# What is typed, and the words on the line once Tab is pressed behind it.
TYPED = {
    "minillm info hf:o": ["minillm", "info", "hf:org/repo"],
    "minillm generate 'a b' --model=tiny-h": ["minillm", "generate", "a b", "--model=tiny-hybrid"],
    "minillm generate --model=hf:org/repo@": ["minillm", "generate", "--model=hf:org/repo@v1"],
    "minillm generate --model=note": ["minillm", "generate", "--model=notes.gguf"],
    "minillm generate Recipe: --dty": ["minillm", "generate", "Recipe:", "--dtype"],
}
SHELLS = {"bash": ["--norc", "--noprofile"], "zsh": ["-f"]}


@pytest.mark.parametrize(
    "shell",
    [
        pytest.param(one, marks=pytest.mark.skipif(not shutil.which(one), reason=f"needs {one}; CI installs it"))
        for one in SHELLS
    ],
)
def test_a_shell_completes_by_its_script_what_is_typed_at_it(shell, surroundings, tmp_path):
    terminal, theirs = pty.openpty()
    arguments = [shell, *SHELLS[shell], "-i"]
    places = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "cwd": tmp_path, "env": surroundings}
    process = subprocess.Popen(arguments, start_new_session=True, **places)
    os.close(theirs)
    try:
        os.write(terminal, f'eval "$(minillm completion {shell})"\n'.encode())
        for text, words in TYPED.items():
            os.write(terminal, f"{text}\t\x01printf '<%s>' \n".encode())  # to the front of the line, and run it
            assert shown(terminal, "<minillm>(<[^>]*>)*(?=[^<])") == "".join(f"<{word}>" for word in words)
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


def shown(terminal: int, pattern: str) -> str:
    """What comes next on a terminal that matches."""
    seen, deadline = "", time.monotonic() + 60
    while not (found := re.search(pattern, seen)):
        assert time.monotonic() < deadline, seen
        if select.select([terminal], [], [], 1)[0]:
            seen += os.read(terminal, 4096).decode(errors="replace")
    return found[0]
