"""Which recipe for which matrix."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm.errors import UserError
from minillm.quant.rules import check_used, read_rules, rule_for

PLACES = ["embed", "blocks[0].qkv", "blocks[1].down", "blocks[11].down", "head"]


def chosen(text: str, place: str) -> str | None:
    """What a matrix gets: None for no rule, `keep`, or a recipe."""
    rule = rule_for(place, read_rules(text))
    return None if rule is None else rule.recipe.name if rule.recipe else "keep"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("int8", ["int8"] * 5),
        ("int8,embed=keep", ["keep", "int8", "int8", "int8", "int8"]),
        ("down=int4", [None, None, "int4", "int4", None]),
        ("blocks[1].down=int4", [None, None, "int4", None, None]),
        ("blocks[1*=int4", [None, None, "int4", "int4", None]),
        ("int8 , *d*=int4", ["int4", "int8", "int4", "int4", "int4"]),
        ("embed=int4,int8", ["int8"] * 5),
    ],
)
def test_the_last_rule_that_fits_counts_by_name_or_by_place(text, expected):
    assert [chosen(text, place) for place in PLACES] == expected


def test_a_method_stands_before_its_recipe():
    rules = read_rules("awq:int4-g32,down=gptq:int4,embed=q8_0")
    assert [(rule.pattern, rule.method, rule.recipe.name) for rule in rules if rule.recipe] == [
        ("*", "awq", "int4-g32"),
        ("down", "gptq", "int4"),
        ("embed", None, "q8_0"),
    ]


@given(st.text("int48-g,=*:[]. keepq_", max_size=20))
def test_whatever_is_written_is_understood_or_refused_in_a_sentence(text):
    try:
        assert read_rules(text)
    except UserError as error:
        assert "expected" in str(error)


def test_a_rule_that_fits_nothing_is_refused_with_the_names_there_are():
    with pytest.raises(UserError, match="no matrix is called 'dwon', expected one of embed, qkv, down, head, or a"):
        check_used(read_rules("int8,dwon=int4"), PLACES)
