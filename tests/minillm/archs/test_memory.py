"""What a sequence costs in memory, by family: `minillm info` says it, and the arrays are as large."""

import re

import jax
import pytest
import tiny
from click.testing import CliRunner

import minillm
from minillm.blocks import AttentionSpec, LatentAttentionSpec
from minillm.cache import StateSpec
from minillm.cli import main

FLOAT32 = 4


def numbers_a_token(spec) -> int:
    """Keys and values of all KV heads, or a latent and a rotated key; a window, a state and an MLP do not grow."""
    if isinstance(spec, LatentAttentionSpec):
        return spec.l + spec.a
    return 2 * spec.g * spec.k if isinstance(spec, AttentionSpec) and spec.window is None else 0


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_state_grows_by_the_bytes_a_token_that_info_says(family, tmp_path):
    tiny.unpacked(f"{family}_0", tmp_path)
    lm = minillm.load(tmp_path)
    expected = FLOAT32 * sum(numbers_a_token(spec) for layer in lm.config.layers for spec in layer)
    before, after = (real_bytes(lm.model.init_state(StateSpec(1, length))) for length in (700, 701))
    assert after - before == expected
    said = CliRunner().invoke(main, ["info", str(tmp_path)], catch_exceptions=False).output
    (more,) = re.findall(r"^remembers .*, (\S+) (B|kB) for one more", said, re.MULTILINE)
    unit, rounding = {"B": (1, 0), "kB": (1000, 50)}[more[1]]
    assert float(more[0]) * unit == pytest.approx(expected, abs=rounding)


def real_bytes(state) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state))
