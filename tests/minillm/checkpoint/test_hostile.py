"""No size that a checkpoint claims is allocated, or counted to, before its tensors have been held against it."""

import json
import tracemalloc
from array import array
from collections.abc import Callable

import converter
import numpy as np
import pytest
import tiny
from families import FAMILIES, shapes

from minillm.checkpoint.gguf import GGUF
from minillm.checkpoint.loader import from_gguf, open_checkpoint
from minillm.errors import UserError

LARGEST = 2**31 - 1
MEGABYTES = 20  # that the headers of these checkpoints may take


def assert_modest(shapes: Callable[[], object], where: str) -> bool:
    """Whether something is refused, in one sentence; it fails if it takes much memory before it is."""
    tracemalloc.start()
    try:
        shapes()
    except UserError as error:
        assert where in str(error)
        assert "\n" not in str(error)
        return True
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MEGABYTES << 20
    return False


@pytest.mark.parametrize("family", tiny.quick("mixtral", "deepseek_v3", "jamba", "mamba2", "gpt2", "qwen3_next"))
def test_no_number_in_a_config_is_taken_on_trust(family, tmp_path):
    values, refused = tiny.settings(f"{family}_0", tmp_path), 0
    for key in [key for key, value in values.items() if type(value) is int]:
        (tmp_path / "config.json").write_text(json.dumps({**values, key: LARGEST}))
        refused += assert_modest(lambda: open_checkpoint(tmp_path).shapes(), str(tmp_path))
    assert refused >= 4


@pytest.mark.parametrize("kind", FAMILIES)
def test_no_number_in_a_gguf_file_is_taken_on_trust(kind, tmp_path):
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes(FAMILIES[kind]).items()}
    source = GGUF(converter.convert(tmp_path / "m.gguf", FAMILIES[kind], tensors))
    usual, refused = dict(source.metadata), 0
    prefix = f"{usual['general.architecture']}."
    for key in [key for key in usual if key.startswith(prefix)]:
        value, huge = usual[key], LARGEST
        if isinstance(value, array):
            huge = array("q", [LARGEST] * len(value))
        source.metadata = {**usual, key: huge}
        refused += assert_modest(lambda: from_gguf(source, None, None).shapes(), source.where)
    assert refused >= 4
