"""The shell completes commands, options and the names of models."""

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from minillm.cli import main
from minillm.folders import bundled_models


def completed(*words: str) -> list[str]:
    """What bash is told to offer for the last word, by the protocol of the script: a type and a value a line."""
    asked = {"COMP_WORDS": " ".join(["minillm", *words]), "COMP_CWORD": str(len(words))}
    environ = os.environ | asked | {"_MINILLM_COMPLETE": "bash_complete"}
    script = "from minillm.cli import main; main(prog_name='minillm')"
    result = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True)
    return result.stdout.splitlines()


def test_models_are_completed_in_bash():
    assert completed("info", "tiny-m") == ["plain,tiny-mamba", "plain,tiny-moe"]


@pytest.mark.slow
def test_commands_options_and_files_are_completed_too(tmp_path):
    assert completed("val") == ["plain,validate"]
    assert "plain,--max-tokens" in completed("generate", "--max")
    assert set(completed("generate", "--model", "")) >= {f"plain,{name}" for name in bundled_models()}
    assert completed("info", str(tmp_path / "m")) == [f"file,{tmp_path / 'm'}"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_asks_minillm(shell):
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0
    assert f"_MINILLM_COMPLETE={shell}_complete" in result.stdout


def test_bash_takes_its_script():
    script = CliRunner().invoke(main, ["completion", "bash"]).stdout
    check = f"{script}\ncomplete -p minillm"
    result = subprocess.run(["bash", "-c", check], capture_output=True, text=True)
    assert "_minillm_completion" in result.stdout, result.stderr
