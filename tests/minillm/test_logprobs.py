"""The log probabilities are those of the model's whole distribution, as float64 has them of its logits."""

import files
import numpy as np
import pytest

import minillm
from minillm.evaluate.logprobs import log_probs

pytestmark = pytest.mark.usefixtures("quick_programs")

PROMPT, TOKENS = [5, 9, 200], [17, 17, 3, 250, 8]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return minillm.load(files.write_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf"))


@pytest.mark.parametrize("n", [0, 3, 10_000])
def test_they_are_the_log_softmax_of_the_logits(lm, n):
    logits = lm.logits([PROMPT + TOKENS])[0].astype(np.float64)[len(PROMPT) - 1 : -1]
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    found = log_probs(lm.model, PROMPT, TOKENS, n)
    assert [one.id for one in found] == TOKENS
    for one, row in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.logprob, row[one.id], rtol=1e-5)
        assert len(one.top) == min(n, len(row))
        np.testing.assert_allclose([value for _, value in one.top], np.sort(row)[::-1][:n], rtol=1e-5)
        np.testing.assert_allclose([row[token] for token, _ in one.top], [value for _, value in one.top], rtol=1e-5)


def test_of_no_tokens_there_are_none(lm):
    assert log_probs(lm.model, PROMPT, [], 3) == []
