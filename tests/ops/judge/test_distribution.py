import sys
from functools import partial

import numpy as np
import pytest

from minillm import ops
from minillm.ops.cases import Case, DistributionOp
from minillm.ops.judge.distribution import detectable, find_fault, tail


def softmax(logits):
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def draw(case, rng):
    logits = rng.normal(size=case.sizes["v"]) * 2
    logits[0] = -np.inf
    return {"logits": logits.astype(np.float32)}


def sample(call, arrays, seed, count):
    return call(logits=np.tile(arrays["logits"], (count, 1)), seed=seed)[0]


SAMPLER = DistributionOp(
    "sampler", {}, ("logits",), (Case("eight", {"v": 8}), Case("many", {"v": 300})), draw, sample,
    lambda arrays: softmax(arrays["logits"]),
)  # fmt: skip


def gumbel(logits, seed, temperature=1.0, floor=-np.inf):
    noise = np.random.default_rng(seed).gumbel(size=logits.shape)
    return np.argmax(np.maximum(logits, np.float32(floor)) / temperature + noise, axis=1).astype(np.int32)


def test_a_correct_sampler_passes():
    report = ops.validate(SAMPLER, gumbel, arrays="numpy")
    report.assert_ok()
    assert report.ran["chi-square"] == 2
    assert 0 < report.details["eight"]["detectable_w"] < 0.05


def test_a_temperature_that_is_a_twentieth_off_is_found():
    report = ops.validate(SAMPLER, lambda logits, seed: gumbel(logits, seed, 1.05), arrays="numpy")
    assert "chi-square" in report.failures[0].fault


def test_what_must_never_come_is_forbidden_not_tested():
    report = ops.validate(SAMPLER, lambda logits, seed: gumbel(logits, seed, floor=-6), arrays="numpy")
    assert any("outcome 0 has probability 0" in failure.fault for failure in report.failures)


def test_one_case_can_be_repeated():
    wrong = partial(gumbel, temperature=1.05)
    line = ops.validate(SAMPLER, wrong, arrays="numpy").failures[0].trial
    assert [f.trial for f in ops.validate(SAMPLER, wrong, arrays="numpy", only=line).failures] == [line]


@pytest.mark.parametrize(
    ("statistic", "freedom", "p"), [(3.8415, 1, 0.05), (124.342, 100, 0.05), (30.144, 19, 0.05)]
)
def test_the_tail_agrees_with_printed_tables(statistic, freedom, p):
    assert tail(statistic, freedom) == pytest.approx(p, rel=1e-3)


def test_correct_counts_are_almost_never_faulty_and_wrong_ones_of_the_promised_size_nearly_always():
    rng, p = np.random.default_rng(0), softmax(np.linspace(-2, 2, 20))
    draws = 5000
    assert not any(find_fault(rng.multinomial(draws, p), p, 1) for _ in range(1000))
    direction = np.where(np.arange(20) % 2, p, -p)
    wrong = p + direction * detectable(p, draws, 1) / np.sqrt(np.sum(direction**2 / p))
    found = sum(bool(find_fault(rng.multinomial(draws, wrong / wrong.sum()), p, 1)) for _ in range(300))
    assert found >= 0.95 * 300


def test_a_trial_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="sampler has no trial 'nonsense'; it has: 'chi-square; eight; seed 0'"):
        ops.validate(SAMPLER, gumbel, arrays="numpy", only="nonsense")


def test_a_sampler_that_ends_the_program_ends_only_itself():
    report = ops.validate(SAMPLER, lambda logits, seed: sys.exit(0), arrays="numpy")
    assert "SystemExit: 0" in report.failures[0].fault


def test_a_sampler_in_another_dtype_is_refused():
    with pytest.raises(ValueError, match="dtype is 'bfloat16', expected 'float32'"):
        ops.validate(SAMPLER, gumbel, arrays="numpy", dtype="bfloat16")


def test_outcomes_beyond_the_last_are_named():
    assert "outcome 4 came, there are 3" in (find_fault(np.array([5, 5, 5, 0, 1]), np.full(3, 1 / 3), 1) or "")
