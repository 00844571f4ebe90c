"""The protocol's laws for a small model of every family: one block of each kind that it has."""

from dataclasses import replace
from typing import Any

import pytest
import tiny
from toys import ROUNDING, token_ids

import minillm
from minillm import laws

pytestmark = pytest.mark.usefixtures("quick_programs")

TOLERANCE = 2 * ROUNDING  # a state carried from step to step adds roundings of its own (jamba: 1.25 * ROUNDING)

DIFFERENT = ("gpt_oss", "deepseek_v2", "mamba2", "jamba", "qwen3_next")  # the others: bench.lattice


@pytest.fixture(scope="module", params=tiny.quick(*DIFFERENT))
def model(request, tmp_path_factory):
    return one_of_each_block(request.param, tmp_path_factory.mktemp(request.param))


def one_of_each_block(family, folder):
    tiny.unpacked(f"{family}_0", folder)
    model: Any = minillm.load(folder).model
    kinds = {(type(block), getattr(block, "spec", None)): block for block in model.blocks}
    return model.replace(blocks=tuple(kinds.values()))


def tokens(model):
    return lambda rng, shape: token_ids(rng, shape) % model.embed.shape[0]


def test_every_schedule_gives_what_reading_whole_sequences_gives(model):
    laws.check_schedules(model, tokens(model), tolerance=TOLERANCE, examples=2, steps=8, all_slots=True)


@pytest.mark.parametrize("family", tiny.quick("mistral", "deepseek_v2", "jamba"))  # a ring, latents, states
def test_pages_and_some_slots_in_any_order_hold_what_a_plain_memory_holds(family, tmp_path):
    """Recurrent models have nothing in pages, but slots all the same."""
    model, spec = one_of_each_block(family, tmp_path), replace(laws.SPEC, kind="paged")
    laws.check_schedules(model, tokens(model), spec=spec, tolerance=TOLERANCE, examples=2, steps=4, all_slots=False)


def test_a_step_updates_memory_in_place(model):
    laws.check_donation(model, tokens(model))


def test_later_tokens_change_nothing_before_them(model):
    laws.check_causality(model, tokens(model))
