"""Whatever one field of a config.json says, the file is refused by a sentence or makes a model that runs."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from minillm.archs import Arch, find_hf
from minillm.cache import StateSpec
from minillm.checkpoint.loader import stacked
from minillm.config import Config, Fields
from minillm.errors import UserError
from minillm.model import Model
from minillm.span import Span

WRONG = [0, 3, 0.3, -1, 1000, None, True, "x", [1, 1], {}]


def changed(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The same with one field another, or one field of an object in it."""
    for key, value in values.items():
        yield {name: other for name, other in values.items() if name != key}
        yield from ({**values, key: wrong} for wrong in WRONG)
        if isinstance(value, dict):
            yield from ({**values, key: inner} for inner in changed(value))


def check_that_it_runs(arch: Arch, config: Config) -> None:
    """Shapes of all parameters and of one forward fit together."""

    def get(name, layer, *shapes, init):
        assert name in arch.HF_TENSORS
        return stacked(shapes)

    def forward(model):
        n = jnp.full(1, 3, jnp.int32)
        at, state = Span.chain(jnp.zeros_like(n), n, 3), model.init_state(StateSpec(slots=1, max_len=8))
        return model(jnp.zeros((1, 3), jnp.int32), state, at)

    logits, _ = jax.eval_shape(forward, Model.build(config, get))
    assert logits.shape == (1, 3, config.v)
    assert logits.dtype == np.float32


@pytest.mark.parametrize("family", tiny.quick("gemma3_text", "deepseek_v3"))
def test_a_changed_field_is_refused_by_a_sentence_or_makes_a_model_that_runs(family, tmp_path):
    values, arch, configs = tiny.settings(f"{family}_0", tmp_path), find_hf(family, "test"), set()
    for one in changed(values):
        try:
            configs.add(find_hf(one.get("model_type"), "test").config_from_hf(Fields(one, "test")))
        except UserError as error:
            assert str(error).startswith("test")
    assert len(configs) > 10
    for config in configs:
        if len(config.layers) < 10:  # a thousand take long
            check_that_it_runs(arch, config)
