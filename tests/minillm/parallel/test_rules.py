"""How models are cut: nothing is lost, a device reads what it holds, and what cannot be cut is refused by name."""

import math
from dataclasses import dataclass, replace
from typing import Any

import families
import files
import numpy as np
import pytest
import tiny
from jax.sharding import AbstractMesh

from minillm.archs.tensors import View
from minillm.blocks.params import stacked
from minillm.checkpoint.loader import open_checkpoint
from minillm.errors import UserError
from minillm.model import Model
from minillm.parallel import local, new_mesh
from minillm.parallel.mesh import parsed
from minillm.parallel.rules import cuts

SIZES = [{"model": 2}, {"model": 4, "data": 2}, {"model": 8}, {"expert": 2}, {"model": 2, "expert": 4}]


def abstract(sizes: dict[str, int]) -> AbstractMesh:
    return AbstractMesh(tuple(sizes.values()), tuple(sizes))


def places(sizes: dict[str, int]):
    return ({"model": i, "expert": j} for i in range(sizes.get("model", 1)) for j in range(sizes.get("expert", 1)))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("family", families.FAMILIES)
def test_devices_together_hold_every_number_and_each_its_part_of_them(family, sizes):
    config, mesh = tiny.config(families.FAMILIES[family] | {"vocab_size": 61}), abstract(sizes)
    try:
        found = cuts(config, mesh)
    except UserError:
        return
    held, whole = 0, 0

    def get(name, layer, *shapes, init):
        nonlocal held, whole
        cut, shape = found[name, layer], stacked(shapes).shape
        numbers, seen = (
            np.arange(1, math.prod(shape) + 1, dtype=np.int32).reshape(shape),
            np.zeros(math.prod(shape) + 1),
        )
        for place in places(sizes):
            piece = cut.read(numbers, place)
            assert piece.shape == cut.shape
            seen[piece] = 1  # 0 is what a vocabulary lacks
        assert seen[1:].all(), (name, layer)
        held, whole = held + math.prod(cut.shape), whole + numbers.size

    Model.build(config, get)
    share = math.prod(size for axis, size in sizes.items() if axis == "model")
    assert held >= whole / math.prod(sizes.values())
    assert held < whole * (0.3 + 0.7 / share), "most of a model is divided"


@pytest.mark.parametrize(
    ("family", "sizes", "reason"),
    [
        ("llama", {"model": 3}, "model=3, which does not divide h = 8 of layer 0 of llama, Attention"),
        ("gpt2", {"model": 8}, "model=8, which does not divide h = 4 of layer 0 of gpt2, Attention"),
        ("mamba", {"model": 3}, "model=3, which does not divide i = 512 of layer 0 of mamba, Mamba"),
        ("qwen3_next", {"model": 8}, "model=8, which does not divide h = 4 of layer 0 of qwen3_next, GatedDelta"),
        ("mixtral", {"expert": 3}, "expert=3, which does not divide the e = 4 experts of layer 0 of mixtral, MoE"),
        ("llama", {"expert": 2}, "expert=2, but no layer of llama has experts"),
        ("mamba", {"model": 64}, "model=64, more than the v = 61 tokens of mamba"),
    ],
)
def test_a_mesh_that_does_not_divide_a_model_is_refused_by_name(family, sizes, reason):
    with pytest.raises(UserError, match=reason):
        local(tiny.config(families.FAMILIES[family] | {"vocab_size": 61}), abstract(sizes))


@dataclass(frozen=True)
class Unknown:
    """A kind of block that somebody has added."""


def test_a_kind_of_block_without_a_rule_is_refused_by_name():
    config = replace(tiny.config(families.FAMILIES["llama"]), layers=((Unknown(),),))
    assert local(config, abstract({"data": 2})) == config
    with pytest.raises(UserError, match="nothing says how that divides layer 0 of llama, Unknown"):
        local(config, abstract({"model": 2}))


def test_fewer_kv_heads_than_devices_are_held_by_several():
    spec = local(tiny.config(families.FAMILIES["llama"]), abstract({"model": 8})).layers[0][0]
    assert (spec.h, spec.g) == (1, 1)


class Counting:
    """A source of tensors that remembers which numbers of them were read."""

    def __init__(self, source):
        self.source, self.read_of = source, {}

    def __getattr__(self, name):
        return getattr(self.source, name)

    def read(self, name, index=()):
        read = self.read_of.setdefault(name, np.zeros(self.source.shape(name), bool))
        read[index] = True
        return self.source.read(name, index)

    @property
    def count(self) -> int:
        return sum(int(read.sum()) for read in self.read_of.values())


def read_by_one(checkpoint, found, place) -> tuple[int, int]:
    """How many numbers the device at a place reads of a checkpoint, and how many it then holds."""
    source: Any = Counting(checkpoint.source)
    held = 0

    class Slices:
        def __init__(self, entry, view):
            self.entry, self.view = entry, view

        def __getitem__(self, index):
            return self.entry.read(self.view, index)

    def get(name, layer, *shapes, init):
        nonlocal held
        piece = found[name, layer].read(
            Slices(checkpoint.entry(name), View(source, checkpoint.config, layer)), place
        )
        held += piece.size

    Model.build(checkpoint.config, get)
    return source.count, held


@pytest.mark.parametrize("sizes", [{"model": 2}, {"model": 4, "expert": 2}], ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_oss", "deepseek_v3", "mamba2", "jamba", "qwen3_next"])
def test_a_device_reads_the_numbers_that_it_holds_and_no_others(family, sizes, tmp_path):
    values = families.FAMILIES[family]
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in families.shapes(values).items()}
    checkpoint = open_checkpoint(files.write_folder(tmp_path, values, tensors))
    try:
        found = cuts(checkpoint.config, abstract(sizes))
    except UserError as error:
        assert "no layer" in str(error)
        return
    total = sum(array.size for array in tensors.values())
    for place in places(sizes):
        read, held = read_by_one(checkpoint, found, place)
        assert read == held < total


@pytest.mark.parametrize(
    "axes", ["", "model", "model=", "model=0", "model=two", "model=2,model=2", "heads=2", "model=2;"]
)
def test_what_is_no_mesh_is_refused_by_name(axes):
    with pytest.raises(UserError, match="expected axes and sizes such as data=2,model=4"):
        parsed(axes)


def test_axes_stand_in_the_order_given():
    assert list(parsed("data=2, model=4").items()) == [("data", 2), ("model", 4)]


def test_a_mesh_of_more_devices_than_there_are_says_how_to_pretend():
    with pytest.raises(UserError, match=r"is of 4 devices, but there are 1; .*device_count=4"):
        new_mesh("model=4")
