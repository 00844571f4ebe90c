"""What is committed is what results are compared with."""

import json
import subprocess

import pytest
from click.testing import CliRunner

from bench import check


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A folder of results that is a repository of its own, as many as there are experiments."""
    monkeypatch.setattr(check, "RESULTS", tmp_path)
    for name in ("decode", "techniques"):
        (tmp_path / f"{name}.json").write_text(json.dumps(result(2.0)))
    identity = ["-c", "user.name=n", "-c", "user.email=e"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "baseline"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True, capture_output=True)
    return tmp_path


def result(speed: float) -> dict:
    ratio = {"median": speed, "interval_95": [0.9 * speed, 1.1 * speed]}
    return {"rows": {"INT8": {"one": ratio, "several": None, "kld": [0.1, 0.0, 0.2]}}}


def test_nothing_is_worse_where_nothing_was_run(results):
    ran = CliRunner().invoke(check.main)
    assert ran.exit_code == 0
    assert "no ratio differs" in ran.output


@pytest.mark.parametrize(("speed", "verdict", "code"), [(1.0, "worse", 1), (1.9, "same", 0), (3.0, "better", 0)])
def test_a_slower_rerun_fails_and_says_what_is_slower(results, speed, verdict, code):
    (results / "techniques.json").write_text(json.dumps(result(speed)))
    ran = CliRunner().invoke(check.main)
    assert ran.exit_code == code
    assert verdict in ran.output
    assert "rows, INT8, one" in ran.output
    assert "decode" not in ran.output


def test_an_experiment_that_is_new_has_nothing_to_be_compared_with(results):
    (results / "ops.json").write_text(json.dumps(result(1.0)))
    assert CliRunner().invoke(check.main).exit_code == 0
