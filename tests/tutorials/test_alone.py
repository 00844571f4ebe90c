"""Lessons that run one after the other, each in a process of its own."""

import os

import jax
import pytest
from click.testing import CliRunner

from minillm.cli import main
from minillm.lessons.alone import alone


def test_jax_may_be_told_how_to_start_each_time():
    assert jax.device_count() != 5  # and it is too late to change that here
    assert [alone(devices, count) for count in (5, 2)] == [5, 2]


def devices(count: int) -> int:
    jax.config.update("jax_num_cpu_devices", count)
    return jax.device_count()


def test_what_is_raised_there_is_raised_here():
    with pytest.raises(ZeroDivisionError):
        alone(divmod, 1, 0)


def test_all_lessons_run_without_one_another(small_lesson, monkeypatch, capfd):
    lessons = [small_lesson(("twice:", f"{name}:"), name=f"{name}_small.py") for name in ("01", "02")]
    monkeypatch.setattr("minillm.lessons.lesson.lessons", lambda: lessons)
    monkeypatch.setattr("minillm.cli.tutorial.run_all", run_in)
    result = CliRunner().invoke(main, ["tutorial", "--all"], catch_exceptions=False)
    assert result.exit_code == 0
    told = [line.split() for line in capfd.readouterr().out.splitlines() if "_small" in line]
    assert [name for name, _ in told] == ["01_small", "02_small"]
    assert len({process for _, process in told} | {str(os.getpid())}) == 3


def run_in(lesson):
    print(lesson.name, os.getpid(), flush=True)
