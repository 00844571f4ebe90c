"""A model in bfloat16: half of the memory, and errors of the size that rounding to eight bits makes."""

import files
import jax
import numpy as np
import pytest

import minillm
from minillm.cache.spec import PLAIN
from minillm.errors import UserError

pytestmark = pytest.mark.usefixtures("quick_programs")

U = 2.0**-9  # rounding to bfloat16 changes a number by so much of it at most
A_BLOCK = 8  # roundings on the way through a block: norm, product, nonlinearity, product, sum; and weights


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return files.write_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="module")
def both(path):
    return minillm.load(path), minillm.load(path, dtype="bfloat16")


def nbytes(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def test_weights_and_what_is_remembered_take_half_of_the_memory(both):
    wide, narrow = both
    assert 2 * nbytes(narrow.model) == nbytes(wide.model)
    assert nbytes(narrow.model) == nbytes(narrow.shapes)
    spec = PLAIN.with_length(64)
    assert 2 * narrow.model.state_bytes(spec) == wide.model.state_bytes(spec)


def test_logits_differ_by_roundings_and_no_more(both):
    tokens = np.arange(60)[None] * 7 % files.CONFIG["vocab_size"]
    wide, narrow = (one.logits(tokens) for one in both)
    error = np.sqrt(np.mean((narrow - wide) ** 2) / np.mean(wide**2))
    expected = U * np.sqrt(A_BLOCK * len(both[0].model.blocks))  # of roundings that do not agree in direction
    assert U / 4 < error < 2 * expected


def test_a_text_is_the_likeliest_by_its_own_logits(both):
    _, narrow = both
    prompt = [20, 30, 40]
    tokens = narrow.generate(prompt, max_tokens=6, temperature=0).tokens
    logits = narrow.logits([prompt + tokens])[0, len(prompt) - 1 : -1]
    chosen = logits[np.arange(len(tokens)), tokens]
    rounding = 4 * U * np.abs(logits).max()  # one row and many are summed differently
    assert np.all(logits.max(-1) - chosen <= rounding)


def test_what_cannot_be_is_refused(path, both):
    with pytest.raises(UserError, match="dtype is 'float16', expected float32 or bfloat16"):
        minillm.load(path, dtype="float16")
    with pytest.raises(UserError, match="the weights are bfloat16, expected float32"):
        both[1].quantize("w8a8")


def test_a_checkpoint_in_few_bits_has_no_plain_numbers_to_store(tmp_path):
    from click.testing import CliRunner

    from minillm.cli import main

    small = tmp_path / "small"
    assert CliRunner().invoke(main, ["quantize", "tiny-draft", "q8_0", "-o", str(small)]).exit_code == 0
    with pytest.raises(UserError, match="is in few bits already; leave dtype out"):
        minillm.load(small, dtype="bfloat16")
