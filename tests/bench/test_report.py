"""A ratio lies in its interval, and is found wherever it stands in a result."""

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.report import RESULTS, ratio, ratios_in

SPEEDS = st.lists(st.floats(0.1, 10), min_size=2, max_size=12)


@settings(max_examples=20)
@given(SPEEDS)
def test_the_median_lies_in_its_interval(speeds):
    found = ratio(speeds)
    low, high = found["interval_95"]
    assert low <= found["median"] <= high
    assert min(speeds) - 1e-3 <= low <= high <= max(speeds) + 1e-3
    assert abs(found["median"] - np.median(speeds)) <= 5e-4 + 1e-9


def test_ratios_are_found_by_what_they_are_of():
    one = ratio([2.0, 2.0])
    assert dict(ratios_in({"tasks": {"copy": {"a over b": one}, "n": 3}, "c": one})) == {
        "tasks, copy, a over b": one,
        "c": one,
    }


def test_every_committed_result_can_be_read_and_most_have_ratios():
    files = sorted(RESULTS.glob("*.json"))
    counts = {path.stem: len(dict(ratios_in(json.loads(path.read_text())))) for path in files}
    assert counts["batching"] == 8
    assert counts["speculation"] >= 10
    assert counts["mamba"] == 4
