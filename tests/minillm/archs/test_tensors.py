"""The tensor maps of every family: what is read can be written back, and any slice of it can be read alone."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import tiny

from minillm.archs import find_hf
from minillm.archs.tensors import Entry, Stack, Tensor, Transposed, View
from minillm.blocks.params import Shape, stacked
from minillm.checkpoint.loader import Checkpoint, open_checkpoint
from minillm.config import Config
from minillm.model import Model

WITH_GGUF = [family for family in tiny.FAMILIES if find_hf(family, "test").GGUF_TENSORS]


class Memory:
    """Tensors of a checkpoint that was never a file."""

    def __init__(self, tensors: Mapping[str, np.ndarray]):
        self.tensors = tensors

    def names(self):
        return self.tensors.keys()

    def shape(self, name):
        return self.tensors[name].shape

    def read(self, name, index=()):
        return self.tensors[name][index]


def requests(config: Config) -> list[tuple[str, int | None, tuple[Shape, ...]]]:
    """Every parameter that the model asks for: its name, its layer, and the shapes of what it is stacked from."""
    asked = []

    def get(name, layer, *shapes, init):
        asked.append((name, layer, shapes))
        return stacked(shapes)

    Model.build(config, get)
    return asked


def written(checkpoint: Checkpoint, entries: Mapping[str, Entry]) -> dict[str, np.ndarray]:
    """The tensors of all parameters as `entries` lay them out."""
    tensors = {}
    for name, layer, shapes in requests(checkpoint.config):
        view = View(checkpoint.source, checkpoint.config, layer)
        array = checkpoint.entries[name].read(view)
        pieces = entries[name].write(view, array, *shapes)
        assert not pieces.keys() & tensors.keys()
        tensors |= pieces
    return tensors


def opened(folder: Path) -> Checkpoint:
    """A checkpoint of plain numbers."""
    checkpoint = open_checkpoint(folder)
    assert isinstance(checkpoint, Checkpoint)
    return checkpoint


@pytest.mark.parametrize("name", tiny.NAMES)
def test_what_is_written_is_the_checkpoint(name, tmp_path):
    tiny.unpacked(name, tmp_path)
    checkpoint = opened(tmp_path)
    tensors = written(checkpoint, checkpoint.entries)
    assert tensors.keys() == set(checkpoint.source.names())
    for key, array in tensors.items():
        np.testing.assert_array_equal(array, checkpoint.source.read(key), err_msg=key)


@pytest.mark.parametrize("family", WITH_GGUF)
def test_what_is_written_in_the_order_of_gguf_is_read_as_it_was(family, tmp_path):
    tiny.unpacked(f"{family}_0", tmp_path)
    checkpoint = opened(tmp_path)
    entries = checkpoint.arch.GGUF_TENSORS
    memory = Memory(written(checkpoint, entries))
    for key, layer, shapes in requests(checkpoint.config):
        view = View(memory, checkpoint.config, layer)
        expected = checkpoint.entries[key].read(View(checkpoint.source, checkpoint.config, layer))
        assert entries[key].shape(view) == stacked(shapes).shape
        np.testing.assert_allclose(entries[key].read(view), expected, rtol=1e-6, err_msg=key)  # log(-A) rounds
        check_slices(entries[key], view, key)


@pytest.mark.parametrize("name", tiny.NAMES)
def test_a_slice_is_the_same_slice_of_the_whole(name, tmp_path):
    tiny.unpacked(name, tmp_path)
    checkpoint = opened(tmp_path)
    for key, layer, _ in requests(checkpoint.config):
        check_slices(checkpoint.entries[key], View(checkpoint.source, checkpoint.config, layer), key)


def check_slices(entry: Entry, view: View, name: str) -> None:
    """Random slices along the first axes are those of the whole."""
    whole = entry.read(view)
    rng = np.random.default_rng(whole.size)
    assert entry.shape(view) == whole.shape
    for axes in range(1, whole.ndim + 1):
        ends = [np.sort(rng.choice(size + 1, 2, replace=False)).tolist() for size in whole.shape[:axes]]
        index = tuple(slice(first, last) for first, last in ends)
        np.testing.assert_array_equal(entry.read(view, index), whole[index], err_msg=f"{name}{index}")


def test_a_name_may_lack_what_stands_in_brackets():
    view = View(Memory({"h.3.w": np.zeros(2), "x.h.4.w": np.zeros(3)}), None, 3)  # pyright: ignore
    assert Tensor("[x.]h.{i}.w").names(view) == ["h.3.w"]
    view = View(view.source, view.config, 4)
    assert Tensor("[x.]h.{i}.w").names(view) == ["x.h.4.w"]


def test_a_slice_that_skips_rows_is_refused():
    view = View(Memory({"w": np.zeros((4, 2))}), None, 0)  # pyright: ignore
    with pytest.raises(ValueError, match="step 2, expected 1"):
        Stack((Tensor("w"), Transposed(Tensor("w")))).read(view, (slice(0, 4, 2),))
