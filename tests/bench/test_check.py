"""What is committed is what results are compared with: a loss fails, noise does not, and nothing passes unseen."""

import json
import math
import subprocess

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import check
from bench.report import ratio

SPEEDS = st.lists(st.floats(0.1, 10), min_size=2, max_size=12)


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A folder of results that is a repository of its own, as many as there are experiments."""
    monkeypatch.setattr(check, "RESULTS", tmp_path)
    for name in ("decode", "techniques"):
        (tmp_path / f"{name}.json").write_text(json.dumps(result(2.0)))
    (tmp_path / "growth.png").write_text("a picture")
    identity = ["-c", "user.name=n", "-c", "user.email=e"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "baseline"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True, capture_output=True)
    return tmp_path


def result(speed: float, machine: str = "one") -> dict:
    ratio = {"median": speed, "interval_95": [0.9 * speed, 1.1 * speed]}
    rows = {"INT8": {"one": ratio, "several": None, "kld": [0.1, 0.0, 0.2]}}
    return {"rows": rows, "machine": {"cpu": machine}, "versions": {"minillm": str(speed), "torch": "2"}}


def test_nothing_is_worse_where_nothing_was_run(results):
    ran = CliRunner().invoke(check.main)
    assert ran.exit_code == 0
    assert "no ratio differs" in ran.output


@pytest.mark.parametrize(
    ("speed", "verdict", "code"),
    [(1.0, "worse", 1), (1.4, "worse", 1), (1.6, "same", 0), (3.0, "better", 0), (math.nan, "worse", 1)],
)
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


def test_a_ratio_that_is_new_passes_and_one_that_is_gone_does_not(results):
    more = result(2.0)
    more["rows"]["INT4"] = more["rows"]["INT8"]
    (results / "decode.json").write_text(json.dumps(more))
    ran = CliRunner().invoke(check.main)
    assert (ran.exit_code, "new" in ran.output) == (0, True)
    del more["rows"]["INT8"]
    (results / "decode.json").write_text(json.dumps(more))
    ran = CliRunner().invoke(check.main)
    assert (ran.exit_code, "gone" in ran.output) == (1, True)


def test_a_result_that_was_deleted_is_gone(results):
    (results / "decode.json").unlink()
    ran = CliRunner().invoke(check.main)
    assert (ran.exit_code, "gone" in ran.output) == (1, True)


def test_a_commit_that_is_not_there_is_no_baseline(results):
    ran = CliRunner().invoke(check.main, ["--against", "nowhere"])
    assert ran.exit_code == 2
    assert "nowhere" in ran.output


def test_another_machine_is_named(results):
    (results / "decode.json").write_text(json.dumps(result(2.0, "other")))
    assert "decode: cpu is other now and was one" in CliRunner().invoke(check.main).output


@settings(max_examples=20)
@given(SPEEDS, st.floats(1.01, 3))
def test_only_a_whole_interval_below_the_old_one_by_more_than_runs_differ_is_worse(speeds, factor):
    before = ratio(speeds)
    low, high = before["interval_95"]

    def between(one: float, other: float) -> dict:
        return {"median": one, "interval_95": [one, other]}

    lowest, highest = low / check.BETWEEN_RUNS, high * check.BETWEEN_RUNS
    assert check.judged(between(lowest / factor / 2, lowest / factor), before) == "worse"
    assert check.judged(between(highest * factor, highest * factor * 2), before) == "better"
    for same in (before, between(lowest / 2, low), between(high, 2 * highest), between(lowest / 2, 2 * highest)):
        assert check.judged(same, before) == "same"


@pytest.mark.parametrize("rounds", [3, 12])
def test_reruns_of_the_same_code_pass_and_a_loss_of_a_third_fails(rounds):
    """Rounds that differ by 6 % beside a baseline of twelve, in thirty reruns each."""
    rng = np.random.default_rng(0)

    def rerun(speed: float, rounds: int) -> dict:
        return ratio(speed * np.exp(0.06 * rng.standard_normal(rounds)))

    before = rerun(1.0, 12)
    verdicts = {speed: [check.judged(rerun(speed, rounds), before) for _ in range(30)] for speed in (1.0, 0.67)}
    assert verdicts[1.0].count("worse") == 0
    assert verdicts[0.67].count("worse") == 30
