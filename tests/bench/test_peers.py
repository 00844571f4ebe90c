"""Contestants are given the same to do: several texts are continued as each alone, all of them to the end."""

from dataclasses import replace

import pytest

import minillm
from bench.peers import alone, together
from minillm.lm import LM


@pytest.mark.usefixtures("quick_programs")
def test_several_texts_are_those_that_each_gives_alone():
    lm = minillm.load("tiny-draft")
    lm = LM(replace(lm.config, eos=()), None, lm.shapes, lm.weights)
    prompts, n = [[*range(10 * i, 10 * i + 8)] for i in range(1, 8)], 3  # the first are done before the last begin
    tokens, seconds = together(lm, prompts, n)
    assert tokens == [token for prompt in prompts for token in alone(lm, prompt, n)[0]]
    assert seconds > 0
