"""The protocol's laws for a small model of every family."""

from dataclasses import replace

import pytest
import tiny
from toys import ROUNDING, token_ids

import minillm
from minillm import laws

pytestmark = pytest.mark.usefixtures("quick_laws")


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    tiny.unpacked(f"{request.param}_0", folder)
    return minillm.load(folder).model


def tokens(model):
    return lambda rng, shape: token_ids(rng, shape) % model.embed.shape[0]


def test_every_schedule_gives_what_reading_whole_sequences_gives(model):
    laws.check_schedules(model, tokens(model), tolerance=ROUNDING, examples=2)


def test_pages_hold_what_a_plain_memory_holds(model):
    spec = replace(laws.SPEC, kind="paged")
    laws.check_schedules(model, tokens(model), spec=spec, tolerance=ROUNDING, examples=1, steps=4)


def test_a_step_updates_memory_in_place(model):
    laws.check_donation(model, tokens(model))


def test_later_tokens_change_nothing_before_them(model):
    laws.check_causality(model, tokens(model))
