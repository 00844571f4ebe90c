"""GGUF files of every family in every type: their logits are those of a folder that holds the decoded weights.

The files are llama.cpp's as `converter` makes them; the folder is read by other names, and decoded by the `gguf`
package. The matrices of a file take turns: each is of the next type. A family with fewer matrices than there are
types has several files.
"""

import functools
import re
from collections.abc import Iterator
from pathlib import Path

import converter
import files
import gguf
import jax
import numpy as np
import pytest
from families import FAMILIES, D, V, shapes

import minillm
from minillm.archs import all_archs
from minillm.checkpoint.gguf import GGUF
from minillm.checkpoint.loader import from_gguf
from minillm.errors import UserError
from minillm.lm import LM
from minillm.ops import GGUF_TYPES, encode_gguf

TYPES = [form.name for form in GGUF_TYPES.values()]

# What llama.cpp keeps in float32, or what its converter turns round.
UNCODED = re.compile(r"norm|A_log|conv1d|wpe|router|mlp\.gate\.|moe\.gate\.|shared_expert_gate|kv_b_proj|_bias$")
TOLERANCE = 1e-5  # of the largest logit; the decay rates of a recurrence go through exp and log


def test_there_is_a_checkpoint_for_every_family():
    assert {kind for arch in all_archs() for kind in arch.HF} == set(FAMILIES)


@functools.cache
def rows_of(form: str, width: int) -> np.ndarray:
    """A few coded rows, since encoders that search are slow: by the package, or by `ops.formats`."""
    x = np.random.default_rng(width).normal(size=(32, width)).astype(np.float32) / np.float32(np.sqrt(width))
    try:
        return gguf.quantize(x, gguf.GGMLQuantizationType[form]).view(np.uint8)
    except NotImplementedError:  # the package only decodes this type
        return encode_gguf(x, form)


def drawn(values: dict, first: int) -> tuple[dict, dict, dict]:
    """Tensors of a checkpoint of transformers: as they are, with their matrices decoded, and the types of these.

    A matrix is a few rows in random order; experts, which are one tensor of the file, are of one type. first is the
    place in TYPES of the first matrix's.
    """
    rng, coded, plain, forms, stacks = np.random.default_rng(first), {}, {}, {}, {}
    for name, shape in shapes(values).items():
        turned = converter.is_turned(name)
        rows = (*shape[:-2], shape[-1], shape[-2]) if turned else shape
        if len(shape) == 1 or UNCODED.search(name) or rows[-1] % D:
            plain[name] = coded[name] = (rng.normal(size=shape) / 4 + ("norm" in name)).astype(np.float32)
            continue
        stack = re.sub(r"\.experts\.\d+\.", ".experts.", name)
        form = forms[name] = stacks.setdefault(stack, TYPES[(first + len(stacks)) % len(TYPES)])
        few = rows_of(form, rows[-1])
        coded[name] = few[rng.integers(len(few), size=rows[:-1])]
        decoded = gguf.dequantize(coded[name], gguf.GGMLQuantizationType[form])
        plain[name] = np.ascontiguousarray(decoded.swapaxes(-1, -2) if turned else decoded)
    return coded, plain, forms


def pairs(kind: str, folder: Path) -> Iterator[tuple[LM, LM]]:
    """Models of files that have all types between them, each with that of the decoded weights."""
    values, seen = FAMILIES[kind], set()
    while len(seen) < len(TYPES):
        name = folder / f"from {len(seen)}"
        coded, plain, forms = drawn(values, len(seen))
        path = converter.convert(name.with_suffix(".gguf"), values, coded, forms)
        assert {GGUF(path).dtype(name) for name in GGUF(path).names()} == {*forms.values(), "F32"}
        yield minillm.load(path), minillm.load(files.write_folder(name, values, plain))
        seen.update(forms.values())


@pytest.mark.parametrize("kind", FAMILIES)
def test_files_in_all_types_hold_their_decoded_weights(kind, tmp_path):
    for found, expected in pairs(kind, tmp_path):
        for ours, theirs in zip(jax.tree.leaves(found.model), jax.tree.leaves(expected.model), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)  # equal, but for what is stored as -exp(x)


# These differ most; compiling all takes long.
QUICKLY = ("bamba", "deepseek_v3", "gemma2", "gpt2", "llama", "mamba2")


@pytest.mark.usefixtures("quick_programs")
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in QUICKLY else pytest.mark.slow) for kind in FAMILIES]
)
def test_files_in_all_types_give_the_logits_of_their_decoded_weights(kind, tmp_path):
    tokens = np.random.default_rng(0).integers(0, V, (1, 48))
    for found, expected in pairs(kind, tmp_path):
        logits = expected.logits(tokens)
        assert np.abs(found.logits(tokens) - logits).max() <= TOLERANCE * np.abs(logits).max()


# Keys of IBM's Granite 4, whose files have Bamba's name in llama.cpp; and a converter that forgot what turns.
GRANITE = {
    "rope.scaling.finetuned": (False, "finetuned is False"),
    "embedding_scale": (12.0, "embedding_scale = 12.0 is not supported"),
    "expert_count": (64, "expert_count = 64 is not supported"),
    "rope.dimension_count": (32, "rope.dimension_count is 32, expected 32 / 2"),
}


@pytest.mark.parametrize("key", GRANITE)
def test_a_granite_file_is_not_taken_for_one_of_bamba(key, tmp_path):
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes(FAMILIES["bamba"]).items()}
    source = GGUF(converter.convert(tmp_path / "m.gguf", FAMILIES["bamba"], tensors))
    value, message = GRANITE[key]
    source.metadata[f"granitehybrid.{key}"] = value
    with pytest.raises(UserError, match=message):
        from_gguf(source, None, None)
