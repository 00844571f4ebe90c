"""SmolLM2-135M: the laws, and what follows from them, on weights that were trained."""

import numpy as np
import pytest
from toys import ROUNDING, token_ids

from minillm import laws
from minillm.cache import StateSpec

pytestmark = pytest.mark.usefixtures("optimised_programs")


@pytest.mark.slow
def test_the_laws_hold_for_the_real_model(smollm2):
    model, spec = smollm2.model, StateSpec(slots=2, max_len=12)
    laws.check_schedules(model, token_ids, spec=spec, tolerance=ROUNDING, examples=2, steps=8, shrink=False)
    laws.check_causality(model, token_ids, spec=spec)
    laws.check_donation(model, token_ids, spec=spec)


def test_the_real_model_knows_the_capital_and_takes_the_best_token_of_scoring_at_once(smollm2):
    prompt = smollm2.tokenizer.encode("The capital of France is")
    out = smollm2.generate(prompt, max_tokens=24, temperature=0.0)
    assert out.text.startswith(" Paris")
    logits = smollm2.logits([[*prompt, *out.tokens]])[0, len(prompt) - 1 : -1]
    taken = logits[np.arange(len(out.tokens)), out.tokens]
    assert np.all(taken >= logits.max(axis=1) - ROUNDING * np.abs(logits).max())
