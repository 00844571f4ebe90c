"""Logits as transformers computes them, for small random checkpoints of every family, over 544 tokens each."""

import jax
import numpy as np
import pytest
import tiny
from agreement import QUICK

import minillm
from minillm.cache import StateSpec
from minillm.span import Span

FIRST = [pytest.param(name) for name in tiny.NAMES if name.endswith("_1")]
MORE = [pytest.param(name, marks=pytest.mark.slow) for name in tiny.NAMES if name[-2:] not in ("_0", "_1")]


@pytest.mark.usefixtures("quick_programs")
@pytest.mark.parametrize("name", FIRST + MORE)
def test_checkpoints_saved_by_transformers_give_its_logits(name, tmp_path):
    golden = tiny.unpacked(name, tmp_path)
    assert len(golden["tokens"]) >= 512
    family, _, case = name.rpartition("_")
    lm = minillm.load(tmp_path, context=tiny.context(family, int(case)))
    tiny.assert_agrees(lm.logits(golden["tokens"][None])[0, golden["places"]], golden["logits"])


@pytest.mark.parametrize("family", tiny.quick("mistral", "deepseek_v2", "jamba", "mamba2", "qwen3_next"))
def test_its_logits_come_out_of_a_prefill_and_single_steps_too(family, tmp_path):
    golden = tiny.unpacked(f"{family}_0", tmp_path)
    tokens, prefill = golden["tokens"], 520
    model = minillm.load(tmp_path).model
    advance = jax.jit(read_on, donate_argnames="state", compiler_options=QUICK)
    state = model.init_state(StateSpec(slots=1, max_len=len(tokens)))
    first, state = advance(model, tokens[None, :prefill], state, np.zeros(1, np.int32))
    rows = [np.asarray(first[0])]
    for place in range(prefill, len(tokens)):
        y, state = advance(model, tokens[None, place : place + 1], state, np.full(1, place, np.int32))
        rows.append(np.asarray(y[0]))
    tiny.assert_agrees(np.concatenate(rows)[golden["places"]], golden["logits"])


def read_on(model, tokens, state, start):
    n = jax.numpy.full(1, tokens.shape[1], "int32")
    at = Span.chain(start, n, tokens.shape[1])
    logits, pending = model(tokens, state, at)
    return logits, model.commit(pending, at, jax.numpy.arange(tokens.shape[1], dtype="int32")[None], n)


CASES = [(family, case) for family, cases in tiny.SCRIPT["FAMILIES"].items() for case in range(len(cases))]


@pytest.mark.oracle
@pytest.mark.parametrize(("family", "case"), CASES)
def test_fresh_checkpoints_give_the_logits_of_transformers_live(family, case, tmp_path):
    tokens = tiny.SCRIPT["write_tiny"](tmp_path, family, case, seed=100 + case)
    lm = minillm.load(tmp_path, context=tiny.context(family, case))
    tiny.assert_agrees(lm.logits(tokens[None])[0], tiny.SCRIPT["reference_logits"](tmp_path, tokens))
