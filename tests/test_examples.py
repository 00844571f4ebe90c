"""Every example in help and in the READMEs runs: as it is shown, in a folder that has the files it names."""

import os
import pty
import re
import shlex
import shutil
import subprocess
import sys

import examples
import files
import jax
import pytest
from click.testing import CliRunner

from minillm.cli import main
from minillm.folders import bundled_models

LINES = examples.everywhere()
WIDTH, HEIGHT = 80, 24  # a terminal that nobody made larger
QUICK = {"completion", "list", "pull", "tokenize", "tutorial"}
# What would take minutes is given less to do by these options, which go before the same in the example.
LESS = {"generate": ["--max-tokens", "8"], "trace": ["--max-tokens", "2"], "validate": ["--quick"]}
TALKS = re.compile(r"minillm (chat.*|tutorial \d+|generate --seed \d+)")  # with somebody at a terminal
KEYS = {"chat": b"Hello\n/quit\n", "tutorial": b"q\n"}  # what that one types

KERNELS = """
import numpy as np
from minillm.ops import naive_attention

def flash(q, k, v, *, causal=True, scale=None):
    if type(q).__module__ == "torch":
        import torch
        q, k, v = (np.asarray(one) for one in (q, k, v))
        return torch.from_numpy(np.array(naive_attention(q, k, v, causal=causal, scale=scale)))
    return naive_attention(q, k, v, causal=causal, scale=scale)
"""
PROGRAM = f"""#!{sys.executable}
import json, sys
import numpy as np
from minillm.ops import naive_attention
given = dict(np.load(sys.argv[1]))
options = json.loads(str(given.pop("options")))
required = [given.pop(str(i)) for i in range(len(given)) if str(i) in given]
outputs = naive_attention(*required, **given, **options)
outputs = outputs if isinstance(outputs, tuple) else (outputs,)
np.savez(sys.argv[2], **{{str(i): one for i, one in enumerate(outputs)}})
"""


@pytest.mark.parametrize(("name", "command"), list(examples.commands().items()))
def test_help_fits_a_screen_and_has_an_example(name, command):
    shown = (
        CliRunner().invoke(main, [name, "--help"], prog_name="minillm", terminal_width=WIDTH).stdout.splitlines()
    )
    assert len(shown) <= HEIGHT
    assert [line for line in shown if len(line) > WIDTH] == []
    assert any(f"minillm {name}" in line for line in examples.in_help(command))


def test_there_are_examples_of_every_kind():
    said = [shlex.split(line) for line in LINES]
    for line in (
        "minillm tutorial 1",  # the doors
        "minillm list",  # help
        "minillm generate --seed 3",  # the first of two on a line of a README
        'minillm generate "Recipe: Apple Pie"',  # within a sentence
        'minillm generate --model tiny-moe --temperature 0.7 --seed 0 "Recipe: Tomato Soup"',  # a model card
    ):
        assert shlex.split(line) in said


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the files that the examples name, and models and programs as everywhere."""
    prose = "\n".join(f"The soup of day {i} is made of tomatoes." for i in range(120))
    for name, content in {
        "my_kernels.py": KERNELS,
        "my_numpy_kernels.py": KERNELS,
        "flash": PROGRAM,
        "prompts.jsonl": '"Recipe: Tomato Soup"\n{"prompt": "Recipe: Tomato Stew", "max_tokens": 8}\n',
        "held-out.jsonl": '{"text": "Recipe: Tomato Soup"}\n' * 3,
        "book.txt": prose,
        "notes.txt": prose,
        "config.json": (bundled_models()["tiny-transformer"] / "config.json").read_text(),
    }.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "flash").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def hub(tmp_path_factory, monkeypatch):
    """A cache of the hub that has the model of the example, and no network."""
    cache = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repo = cache / "models--HuggingFaceTB--SmolLM2-135M-Instruct"
    files.write_folder(repo / "snapshots" / "0123456789")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0123456789")


def marked(line: str):
    """The example, with the mark of the suite that runs it."""
    if "torch" in line:
        return pytest.param(line, marks=pytest.mark.oracle)
    name = examples.command_of(line)
    slow = name not in QUICK or re.search("smollm2-135m|--check|--all", line) or TALKS.fullmatch(line)
    return pytest.param(line, marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize("line", [marked(line) for line in LINES])
def test_an_example_runs(line, folder, request):
    name = examples.command_of(line)
    if "smollm2-135m" in line or name == "chat":
        request.getfixturevalue("smollm2")
    if "hf:" in line:
        request.getfixturevalue("hub")
    if "--check" in line:
        number = int(line.split()[2])
        (solved,) = (examples.ROOT / "tests/tutorials/solutions").glob(f"{number:02}_*.py")
        shutil.copy(solved, folder / "answers.py")
    if TALKS.fullmatch(line):
        assert typed(shlex.split(line)[1:], KEYS.get(name, b"")) == 0
    elif re.search(r"[|<>]|\$\(", line):
        shell = f'minillm() {{ "{sys.executable}" -m minillm "$@"; }}; {line}'
        subprocess.run(["bash", "-e", "-o", "pipefail", "-c", shell], check=True, stdin=subprocess.DEVNULL)
    else:
        words = [*shlex.split(re.sub(r"--recover \d+", "--recover 2", line))[1:], *LESS.get(name, [])]
        with jax.numpy_dtype_promotion("standard"):  # as users have it
            result = CliRunner().invoke(main, words, prog_name="minillm")
        assert result.exit_code == 0, result.output


def typed(arguments: list[str], keys: bytes) -> int:
    """Run minillm in a terminal where somebody types; its exit code."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "minillm", *arguments], stdin=theirs, stdout=theirs, stderr=subprocess.STDOUT
    )
    os.close(theirs)
    os.write(ours, keys)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 1 << 16)
        except OSError:  # nobody has the other end any more
            piece = b""
        if not piece:
            break
        shown += piece
    os.close(ours)
    code = process.wait()
    assert b"Traceback" not in shown, shown.decode()
    return code
