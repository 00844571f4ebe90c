"""A bar says what was found and whether that is enough; each stands in a committed result."""

import pytest

from bench.bars import BARS, Bar, found_at, line


@pytest.mark.parametrize(
    ("found", "at_most", "shown", "verdict"),
    [
        ({"median": 0.8, "interval_95": [0.7, 1.2]}, False, "0.80x (0.70 – 1.20)", "**missed**"),
        ({"median": 1.0, "interval_95": [0.7, 1.2]}, False, "1.00x (0.70 – 1.20)", "held"),
        (1.01, True, "1.01", "**missed**"),
        (0.99, True, "0.99", "held"),
        (None, False, "not measured", ""),
    ],
)
def test_a_line_says_whether_a_bar_is_held(found, at_most, shown, verdict):
    assert line(Bar("a", ("decode",), 1, at_most), found)[2:] == (shown, verdict)


@pytest.mark.parametrize("bar", BARS, ids=lambda bar: bar.what)
def test_a_bar_is_in_a_committed_result(bar):
    assert "measured" not in line(bar, found_at(bar.place))[2]


def test_what_was_not_measured_is_not_there():
    assert found_at(("no such experiment", "ratio")) is None
