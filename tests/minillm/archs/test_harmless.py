"""No field of a config.json is passed over in silence, but for those that are listed as harmless; and they are."""

from typing import Any

import pytest
import tiny

from minillm.archs.from_hf import HARMLESS_HF_FIELDS
from minillm.config import Config, Fields
from minillm.errors import UserError

OTHERS = [0, 3, 0.3, -1, 1000, True, False, "x", [1, 1], {}, {"a": 1}]


@pytest.fixture
def declared(monkeypatch):
    """What configs that are read meanwhile declare to be harmless."""
    found, finish = set(), Fields.finish

    def recorded(self, harmless):
        found.update(harmless)
        finish(self, harmless)

    monkeypatch.setattr(Fields, "finish", recorded)
    return found


def outcome(values: dict[str, Any]) -> Config | str:
    """The config that these values give, or why they are refused."""
    try:
        return tiny.config(values)
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_field_that_may_say_anything_is_one_declared_harmless(family, declared, tmp_path):
    values = tiny.settings(f"{family}_0", tmp_path)
    usual = outcome(values)
    assert isinstance(usual, Config)
    ignored = {key for key in values if all(outcome({**values, key: other}) == usual for other in OTHERS)}
    assert ignored <= declared
    assert len(values.keys() - ignored) >= 8


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_field_that_nobody_knows_is_refused_unless_it_is_null(family, tmp_path):
    values = tiny.settings(f"{family}_0", tmp_path)
    for name in ("a_new_one", "hidden_sizes", "Hidden_Size", ""):
        for other in OTHERS:
            assert f"{name} = {other!r} is not supported" in str(outcome({**values, name: other}))
        assert outcome({**values, name: None}) == outcome(values)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_harmless_fields_change_nothing_whatever_they_say(family, tmp_path):
    values = tiny.settings(f"{family}_0", tmp_path)
    usual = outcome(values)
    for other in OTHERS:
        assert outcome({**values, **dict.fromkeys(HARMLESS_HF_FIELDS, other)}) == usual


def test_the_list_of_harmless_fields_has_each_of_them_once():
    assert len(set(HARMLESS_HF_FIELDS)) == len(HARMLESS_HF_FIELDS)


DECODERS_ONLY = {
    "is_encoder_decoder": True,
    "tie_encoder_decoder": True,
    "add_cross_attention": True,
    "use_bidirectional_attention": True,
    "use_mrope": True,
    "pruned_heads": {"0": [1]},
    "quantization_config": {"quant_method": "unknown"},
}


@pytest.mark.parametrize("name", DECODERS_ONLY)
def test_what_would_change_the_model_is_refused_by_field_and_taken_if_it_is_off(name, tmp_path):
    values = tiny.settings("llama_0", tmp_path)
    assert name in str(outcome({**values, name: DECODERS_ONLY[name]}))
    off = {} if name == "pruned_heads" else None if name == "quantization_config" else False
    assert outcome({**values, name: off}) == outcome(values)
