"""The shell completes commands, options and the names of models."""

import subprocess
import sys

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


def test_bash_completes_by_its_script(tmp_path):
    """The one test in which bash asks a process of minillm's own."""
    (tmp_path / "minillm").write_text(f"#!{sys.executable}\nfrom minillm.cli import main\nmain()\n")
    (tmp_path / "minillm").chmod(0o755)
    script = CliRunner().invoke(main, ["completion", "bash"]).stdout
    typed = f"COMP_WORDS=(minillm info tiny-h) COMP_CWORD=2; _minillm_completion {tmp_path / 'minillm'}"
    command = ["bash", "-c", f"{script}\n{typed}\necho ${{COMPREPLY[@]}}; complete -p minillm"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.stdout == "tiny-hybrid\ncomplete -o nosort -F _minillm_completion minillm\n", result.stderr
