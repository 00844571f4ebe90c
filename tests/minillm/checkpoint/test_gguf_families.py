"""GGUF files of every family in every type: their logits are those of a folder that holds the decoded weights.

The files are llama.cpp's as `converter` makes them; the folder is read by other names, and decoded by the `gguf`
package.
"""

import itertools
import re

import converter
import files
import gguf
import numpy as np
import pytest
from families import FAMILIES, D, V, shapes

import minillm
from minillm.archs import all_archs
from minillm.checkpoint.gguf import GGUF
from minillm.ops import GGUF_TYPES, encode_gguf

TYPES = [form.name for form in GGUF_TYPES.values()]

# What llama.cpp keeps in float32, or what its converter turns round.
UNCODED = re.compile(r"norm|A_log|conv1d|wpe|router|mlp\.gate\.|moe\.gate\.|shared_expert_gate|kv_b_proj|_bias$")
TOLERANCE = 1e-5  # of the largest logit; the decay rates of a recurrence go through exp and log


def test_there_is_a_checkpoint_for_every_family_that_llama_cpp_has():
    assert {kind for arch in all_archs() for kind in arch.HF} - set(FAMILIES) == {"bamba"}


def encoded(x: np.ndarray, form: str) -> np.ndarray:
    """Rows of bytes by the package, or where it cannot make a type by `ops.formats`."""
    try:
        return gguf.quantize(x, gguf.GGMLQuantizationType[form]).view(np.uint8)
    except NotImplementedError:
        return encode_gguf(x, form)


def drawn(values: dict, form: str) -> tuple[dict, dict]:
    """Tensors of a checkpoint of transformers: as they are, and with their matrices decoded.

    Encoders that search are slow, so a matrix is made of 16 coded rows, in random order.
    """
    rng, coded, plain = np.random.default_rng(3), {}, {}
    stored = gguf.GGMLQuantizationType[form]
    for name, shape in shapes(values).items():
        turned = converter.is_turned(name)
        rows = (*shape[:-2], shape[-1], shape[-2]) if turned else shape
        if len(shape) == 1 or UNCODED.search(name) or rows[-1] % D:
            plain[name] = coded[name] = (rng.normal(size=shape) / 4 + ("norm" in name)).astype(np.float32)
            continue
        few = encoded((rng.normal(size=(16, rows[-1])) / np.sqrt(rows[-1])).astype(np.float32), form)
        coded[name] = few[rng.integers(16, size=rows[:-1])]
        decoded = gguf.dequantize(coded[name], stored)
        plain[name] = np.ascontiguousarray(decoded.swapaxes(-1, -2) if turned else decoded)
    return coded, plain


CASES = [*zip(FAMILIES, itertools.cycle(TYPES), strict=False), *(("llama", form) for form in TYPES)]


@pytest.mark.usefixtures("quick_programs")
@pytest.mark.parametrize(("kind", "form"), sorted(set(CASES)))
def test_a_file_gives_the_logits_of_its_decoded_weights(kind, form, tmp_path):
    values = FAMILIES[kind]
    coded, plain = drawn(values, form)
    path = converter.convert(tmp_path / "m.gguf", values, coded, form)
    folder = files.write_folder(tmp_path / "m", values, plain)
    tokens = np.random.default_rng(0).integers(0, V, (1, 48))
    expected = minillm.load(folder).logits(tokens)
    source = GGUF(path)
    assert form in {source.dtype(name) for name in source.names()}
    assert np.abs(minillm.load(path).logits(tokens) - expected).max() <= TOLERANCE * np.abs(expected).max()
