import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from minillm.cli import main
from minillm.cli.validate import parse_supports
from minillm.ops.attention.cases import ATTENTION
from minillm.ops.judge.kernel import Kernel

KERNELS = """
import numpy as np

def norm(x, weight, eps):
    wide = x.astype(np.float32)
    y = wide / np.sqrt(np.mean(wide * wide, axis=-1, keepdims=True) + np.float32(eps)) * weight.astype(np.float32)
    return y.astype(x.dtype)

def no_root(x, weight, eps):
    return x / (np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps)) * weight

def loud(x, weight, eps):
    print("in the kernel")
    return norm(x, weight, eps)

def system(x, weight, eps):
    import ctypes, os, sys
    os.write(1, b"from a system call")
    sys.__stdout__.write("from Python")
    ctypes.CDLL(None).puts(b"from C")
    return no_root(x, weight, eps)

calls = []

def stopped(x, weight, eps):
    calls.append(x)
    if len(calls) == 4:
        raise KeyboardInterrupt
    return no_root(x, weight, eps)

constant = 3
"""


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    path = tmp_path_factory.mktemp("kernels") / "my_kernels.py"
    path.write_text(KERNELS)
    return str(path)


def validate(*arguments: str):
    return CliRunner().invoke(main, ["validate", *arguments], prog_name="minillm")


def test_a_correct_kernel_exits_with_0_and_a_wrong_one_with_1(kernels):
    result = validate(f"{kernels}:norm", "--op", "rms_norm", "--arrays", "numpy")
    assert result.exit_code == 0, result.output
    assert "norm: rms_norm in float32: ok" in result.stdout
    result = validate(f"{kernels}:no_root", "--op", "rms_norm", "--arrays", "numpy", "--quick")
    assert result.exit_code == 1
    assert "FAILED accuracy" in result.stdout


def test_a_report_as_json_gives_the_trial_to_repeat(kernels):
    out = json.loads(validate(f"{kernels}:no_root", "--op", "rms_norm", "--arrays", "numpy", "--json").stdout)
    assert not out["ok"]
    trial = out["failures"][0]["trial"]
    again = validate(f"{kernels}:no_root", "--op", "rms_norm", "--arrays", "numpy", "--only", trial)
    assert again.exit_code == 1
    assert trial in again.stdout


def test_what_a_kernel_prints_is_no_part_of_the_report(kernels):
    result = validate(f"{kernels}:loud", "--op", "rms_norm", "--arrays", "numpy", "--json", "--quick")
    assert json.loads(result.stdout)["ok"]
    assert "in the kernel" in result.stderr


def test_nothing_but_the_report_reaches_standard_output_and_nothing_is_left_behind(kernels, tmp_path):
    command = [sys.executable, "-m", "minillm", "validate", f"{kernels}:system", "--op", "rms_norm"]
    command += ["--arrays", "numpy", "--quick", "--json"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUNBUFFERED": ""}
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert not json.loads(result.stdout)["ok"]
    assert all(f"from {source}" in result.stderr for source in ("a system call", "Python", "C"))
    assert not list(tmp_path.iterdir())


def test_a_failure_comes_with_the_command_that_repeats_it(kernels):
    arguments = [f"{kernels}:no_root", "--op", "rms_norm", "--arrays", "numpy", "--supports", "d=1,8"]
    failure = json.loads(validate(*arguments, "--json").stdout)["failures"][0]
    minillm, name, *again = shlex.split(failure["reproduce"])
    assert (minillm, name) == ("minillm", "validate")
    assert failure["fault"] in validate(*again).stdout


def test_what_a_kernel_supports_can_be_said(kernels):
    result = validate(f"{kernels}:norm", "--op", "rms_norm", "--arrays", "numpy", "--supports", "d=1,8")
    assert "not covered, d = " in result.stdout


def test_what_a_kernel_supports_can_be_said_in_parts():
    assert parse_supports(["k=64", "causal=True,false", "k=128"]) == {"k": (64, 128), "causal": (True, False)}


def test_ops_can_be_listed():
    listed = dict(line.split(maxsplit=1) for line in validate("--op", "list").stdout.splitlines())
    assert {"attention", "selective_scan", "moe"} <= listed.keys()
    assert listed["rms_norm"] == "x, weight; eps -> y"
    assert listed["sampling"] == "logits; seed"


def test_the_documented_flags_cover_a_case_of_each_width():
    supports = parse_supports(["k=64,128"])
    kernel = Kernel(lambda q, k, v, *, causal=True, scale=None: None, supports=supports)
    covered = [case for case in ATTENTION.cases if not kernel.uncovered(ATTENTION, case, "bfloat16", "ordinary")]
    assert {case.sizes["k"] for case in covered} == {64, 128}


def test_ctrl_c_prints_what_was_found_so_far_and_exits_with_130(kernels):
    result = validate(f"{kernels}:stopped", "--op", "rms_norm", "--arrays", "numpy", "--json")
    assert result.exit_code == 130
    report = json.loads(result.stdout)
    assert report["interrupted"]
    assert not report["ok"]
    assert report["failures"][0]["reproduce"].startswith("minillm validate")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["FILE:norm", "--op", "rms_nrom"], ["op is 'rms_nrom', did you mean 'rms_norm'?"]),
        (["FILE:norn", "--op", "rms_norm"], ["no function 'norn'"]),
        (["FILE:constant", "--op", "rms_norm"], ["no function 'constant', only a value of type int"]),
        (["nowhere.py:norm", "--op", "rms_norm"], ["nowhere.py does not exist"]),
        (["FILE", "--op", "rms_norm"], ["FILE.py:FUNCTION"]),
        (["--op", "rms_norm"], ["FILE.py:FUNCTION or --program"]),
        (["FILE:norm"], ["--op"]),
        (["FILE:norm", "--op", "rms_norm", "--dtype", "fp4"], ["dtype is 'fp4'"]),
        (["FILE:norm", "--op", "rms_norm", "--supports", "k"], ["--supports is 'k'"]),
        (["FILE:norm", "--op", "rms_norm", "--supports", "K=64"], ["supports names 'K'"]),
        (["FILE:norm", "--op", "rms_norm", "--jit", "--arrays", "numpy"], ["--jit compiles JAX kernels"]),
        (["FILE:norm", "--op", "rms_norm", "--only", "acuracy; two; seed 0"], ["no check 'acuracy'"]),
        (["FILE:norm", "--op", "rms_norm", "--only", "x"], ["trial 'x'"]),
        (["FILE:norm", "--op", "rms_norm", "--only", ""], ["trial ''"]),
        (["FILE:norm", "--op", "rms_norm", "--supports", "style=odd"], ["style = 'odd'", "'outlier channel'"]),
        (["BROKEN:norm", "--op", "rms_norm"], ["cannot be imported", "SyntaxError"]),
        (["FILE:norm", "--op", "rms_norm", "--arrays", "cupy"], ["cupy is not installed"]),
        (["--program", "/no/such/program x", "--op", "rms_norm"], ["/no/such/program x", "can be run"]),
    ],
)
def test_bad_arguments_are_refused_in_one_line(kernels, arguments, words):
    files = {"FILE": kernels, "BROKEN": kernels.replace("my_kernels", "broken")}
    Path(files["BROKEN"]).write_text("def norm(:")
    names = [part.partition(":") for part in arguments]
    result = validate(*(files.get(first, first) + colon + rest for first, colon, rest in names))
    assert result.exit_code == 2, result.output
    assert len(result.stderr.strip().splitlines()) == 1
    for word in words:
        assert word in result.stderr
