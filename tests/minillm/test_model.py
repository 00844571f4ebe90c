import files
import jax.numpy as jnp
import numpy as np
import pytest

import minillm
from minillm import laws
from minillm.cache import StateSpec
from minillm.span import Span

# Rounding of float32 sums of different shapes, relative to the largest logit. A logit passes some 4 sums a
# layer; their errors of about one ulp (6e-8) each add up as a random walk, which stays below 64 ulp.
ROUNDING = 64 * 2**-24


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return minillm.load(files.write_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf"))


def token_ids(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(2, 258, shape).astype(np.int32)


@pytest.mark.parametrize("spec", laws.with_kinds(), ids=lambda spec: spec.kind)
def test_the_laws_hold_for_a_llama(tiny, spec):
    laws.check_schedules(tiny.model, token_ids, spec=spec, tolerance=ROUNDING)
    laws.check_donation(tiny.model, token_ids, spec=spec)


def test_the_laws_hold_for_the_real_model(smollm2):
    laws.check_schedules(smollm2.model, token_ids, tolerance=ROUNDING, examples=1, steps=8, shrink=False)
    laws.check_causality(smollm2.model, token_ids)
    laws.check_donation(smollm2.model, token_ids)


def test_a_block_alone_obeys_the_laws(tiny):
    def activations(rng, shape):
        return rng.normal(size=(*shape, 16)).astype(np.float32)

    laws.check_schedules(tiny.model.blocks[0], activations, tolerance=ROUNDING, examples=4)


def test_batching_and_padding_change_logits_by_rounding_only(smollm2):
    tokens = token_ids(np.random.default_rng(1), (3, 40))
    together, alone = smollm2.logits(tokens), np.concatenate([smollm2.logits(one[None]) for one in tokens])
    shorter = smollm2.logits(tokens[:, :33])
    scale = np.abs(alone).max()
    assert np.abs(together - alone).max() / scale <= ROUNDING
    assert np.abs(together[:, :33] - shorter).max() / scale <= ROUNDING


def test_the_real_model_step_by_step_takes_the_best_token_of_scoring_at_once(smollm2):
    prompt = smollm2.tokenizer.encode("The capital of France is")
    tokens = smollm2.generate(prompt, max_tokens=24, temperature=0.0).tokens
    logits = smollm2.logits([[*prompt, *tokens]])[0, len(prompt) - 1 : -1]
    taken = logits[np.arange(len(tokens)), tokens]
    assert np.all(taken >= logits.max(axis=1) - ROUNDING * np.abs(logits).max())


def test_a_tree_scored_at_once_is_the_tree_read_from_memory(tiny):
    tokens, parent = token_ids(np.random.default_rng(3), (1, 5)), np.array([[-1, 0, 0, 1, 2]], np.int32)
    at = Span.tree(np.zeros(1, np.int32), np.full(1, 5, np.int32), jnp.asarray(parent))
    state = tiny.model.init_state(StateSpec(slots=1, max_len=8))
    (whole, _), (read, _) = tiny.model(tokens, None, at), tiny.model(tokens, state, at)
    assert np.abs(whole - read).max() <= ROUNDING * np.abs(read).max()
