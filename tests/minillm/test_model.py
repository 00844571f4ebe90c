import files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import ROUNDING, token_ids

import minillm
from minillm import laws
from minillm.cache import StateSpec
from minillm.span import Span

pytestmark = pytest.mark.usefixtures("quick_programs")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return minillm.load(files.write_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf"))


@pytest.mark.parametrize("spec", laws.with_kinds(), ids=lambda spec: spec.kind)
def test_the_laws_hold_for_a_llama(tiny, spec):
    all_slots = spec.kind == "contiguous"
    laws.check_schedules(tiny.model, token_ids, spec=spec, tolerance=ROUNDING, examples=4, all_slots=all_slots)
    laws.check_donation(tiny.model, token_ids, spec=spec)


def test_batching_and_padding_change_logits_by_rounding_only(tiny):
    tokens = token_ids(np.random.default_rng(1), (3, 40))
    together, alone = tiny.logits(tokens), np.concatenate([tiny.logits(one[None]) for one in tokens])
    shorter = tiny.logits(tokens[:, :33])
    scale = np.abs(alone).max()
    assert np.abs(together - alone).max() / scale <= ROUNDING
    assert np.abs(together[:, :33] - shorter).max() / scale <= ROUNDING


def test_a_tree_scored_at_once_is_the_tree_read_from_memory(tiny):
    tokens, parent = token_ids(np.random.default_rng(3), (1, 5)), np.array([[-1, 0, 0, 1, 2]], np.int32)
    at = Span.tree(np.zeros(1, np.int32), np.full(1, 5, np.int32), jnp.asarray(parent))
    state = tiny.model.init_state(StateSpec(slots=1, max_len=8))
    logits = jax.jit(lambda state: tiny.model(tokens, state, at)[0])
    whole, read = logits(None), logits(state)
    assert np.abs(whole - read).max() <= ROUNDING * np.abs(read).max()
