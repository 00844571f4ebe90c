"""A line says what was found, and what is not known."""

from bench.success import PLAIN
from bench.techniques.rows import Row
from bench.techniques.table import table_of

FOUND = {"median": 4.0, "interval_95": [3.0, 5.0]}


def test_a_line_says_what_was_found_and_what_is_not_known():
    known = {"successes": 3, "of": 12, "cost_of_1000": 1.5}
    success = {"ways": {PLAIN: known, "way": known | {"successes": 0, "cost_of_1000": None}}}
    found = {
        "one": Row("2x (somebody)", 2.0, FOUND, None, None, [0.5, 0.4, 0.6], "way", "because"),
        "other": Row("3x (somebody)", 2.0, FOUND, 1.0, FOUND, "same text", None, "because"),
    }
    shown = table_of(found, success)
    one, other, plain = shown["rows"]
    assert one[:4] == ["one", "2x (somebody)", "2.0x", "4.00x (3.00 – 5.00)"]
    assert one[4:] == ["–", "–", "0.5000", "0 of 12", "none", "because"]
    assert other[5:9] == ["4.00x (3.00 – 5.00)", "same text", "–", "–"]
    assert plain[7:9] == ["3 of 12", "1.50"]
    assert all(len(line) == len(shown["columns"]) for line in shown["rows"])
