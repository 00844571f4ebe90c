"""What needs eight devices runs in one process that pretends to have them: JAX counts them once, at its start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted(str(path) for path in Path(__file__).parent.glob("eight_*.py"))


def run_all(mark: str) -> None:
    flags = "--xla_force_host_platform_device_count=8 --xla_cpu_parallel_codegen_split_count=1"
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-m", mark, *FILES]
    run = subprocess.run(command, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]


def test_all_that_needs_eight_devices():
    run_all("not oracle and not slow")


@pytest.mark.slow
def test_all_families_on_all_meshes():
    run_all("slow")
