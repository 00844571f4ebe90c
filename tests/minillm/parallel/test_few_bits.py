"""Weights in few bits are cut so that a device reads the codes and scales it holds, and halves no group of them."""

from functools import partial
from typing import Any

import families
import jax
import numpy as np
import others
import pytest
import tiny
from jax.sharding import AbstractMesh

import minillm
from minillm.archs.tensors import View
from minillm.checkpoint.folder_writer import write_folder
from minillm.checkpoint.loader import Unread, open_checkpoint
from minillm.checkpoint.prequantised import coded
from minillm.checkpoint.quantised_folder import Stored, write_quantised
from minillm.checkpoint.safetensors import Safetensors
from minillm.compile.steps import in_few_bits, shapes_of
from minillm.errors import UserError
from minillm.model import Model
from minillm.parallel import answers, spread
from minillm.parallel.few_bits import cut_weight
from minillm.parallel.rules import Cut, cuts
from minillm.quant import by_place, is_weight
from minillm.quant.recipes import PRODUCTS, STORAGES, recipe_named

VALUES = families.FAMILIES["llama"] | {"num_hidden_layers": 1}
INTS = ["int8", "int4", "int4-g32", "int4-g32-affine", "int2-g16"]
ROWS, COLUMNS, OUTPUTS, INPUTS = 4, 512, 0, 1
ALONE = {"group": (OUTPUTS, INPUTS), "row": (OUTPUTS,), "tensor": (), None: ()}  # no number of other pieces matters
CUT = [(name, axis) for name in [*STORAGES, *PRODUCTS, *INTS] for axis in ALONE[recipe_named(name).storage.reach]]


def abstract(**sizes: int) -> AbstractMesh:
    return AbstractMesh(tuple(sizes.values()), tuple(sizes))


@pytest.mark.parametrize(("name", "axis"), CUT)
def test_a_piece_of_codes_and_scales_is_what_rounding_that_piece_gives(name, axis):
    recipe, sizes, w = recipe_named(name), [ROWS, COLUMNS], np.random.default_rng(0).normal(size=(ROWS, COLUMNS))
    pieces = np.split(w.astype(np.float32), 2, axis=axis)
    axes = tuple("model" if i == axis else None for i in range(2))
    cut = Cut(abstract(model=2), pieces[0].shape, axes, ((sizes[axis], sizes[axis] // 2),))
    whole = recipe.weight(recipe.storage.encode(w.astype(np.float32)), COLUMNS, False)
    for i, piece in enumerate(pieces):
        found = cut_weight(whole, cut, "w", lambda part, its_cut, i=i: its_cut.read(part, {"model": i}))
        assert found.shape == piece.shape
        for part, expected in zip(jax.tree.leaves(found), recipe.storage.encode(piece), strict=True):
            assert np.array_equal(part, expected)


@pytest.fixture
def reads(monkeypatch):
    """The bytes that are taken out of files."""
    stored, found = Safetensors.stored, []

    def counted(self, name, index=()):
        array = stored(self, name, index)
        found.append(array.nbytes)
        return array

    monkeypatch.setattr(Safetensors, "stored", counted)
    return found


def pieces_of(source, cut, name, place) -> list[np.ndarray]:
    """The arrays that a device at a place makes of a parameter."""
    found = []
    if not is_weight(source):
        return [cut.read(source, place)]
    cut_weight(source, cut, name, lambda part, its_cut: found.append(its_cut.read(part, place)))
    return found


@pytest.mark.parametrize("sizes", [{"model": 2}, {"model": 2, "data": 2}, {"data": 2}], ids=str)
@pytest.mark.parametrize("recipe", ["w8a8,out=nvfp4-a4,down=int4-g32-affine", "q4_k,out=fp8,down=mxfp6"])
def test_of_a_quantised_folder_a_device_reads_the_bytes_that_it_holds_and_no_others(recipe, sizes, reads, tmp_path):
    lm, changes = minillm.init(VALUES).quantize(recipe)
    write_quantised(tmp_path / "few", lm.model, changes, VALUES, {})
    folder: Any = open_checkpoint(tmp_path / "few")
    mesh = abstract(**sizes)
    leaves, tree = by_place(folder.shapes(), None)
    model = tree.unflatten([Stored(folder.source, name, leaf.dtype) for name, leaf in leaves])
    found, get, held = cuts(folder.config, mesh), answers(model, folder.config), []

    def take(name, layer, *shapes, init):
        source = get(name, layer, *shapes, init=init)
        held.extend(pieces_of(source, found[name, layer], name, {"model": 1}) if is_weight(source) else ())

    Model.build(folder.config, take)
    whole = sum(leaf.nbytes for _, one in by_place(lm.model)[0] if is_weight(one) for leaf in jax.tree.leaves(one))
    assert sum(reads) == sum(piece.nbytes for piece in held)
    assert sum(reads) < 0.52 * whole if "model" in sizes else sum(reads) == whole


@pytest.mark.parametrize(
    ("format", "more"),
    [
        ("gptq 4", 0.0),
        ("awq", 0.0),
        ("ct int4 asymmetric", 0.0),
        ("ct fp8 channel", 0.05),  # an output's scale is read by all that have some of its inputs
        ("gptq act-order", 0.5),  # columns are in no order, and kept as float32
    ],
)
def test_of_what_others_quantised_a_device_reads_its_pieces(format, more, reads, tmp_path):
    values = tiny.without(VALUES, "head_dim", hidden_size=64, intermediate_size=96, num_attention_heads=4)
    values |= {"num_key_value_heads": 2}
    write_folder(tmp_path / "plain", minillm.init(values).model, values, dtype="F32")
    others.quantise(tmp_path / "plain", tmp_path, others.FORMATS[format])
    checkpoint: Any = open_checkpoint(tmp_path / "few")
    mesh = abstract(model=2)
    reads.clear()
    found, get = cuts(checkpoint.config, mesh), answers(checkpoint.model(), checkpoint.config)
    all_of_it = sum(reads)
    reads.clear()

    def compare(name, layer, *shapes, init):
        view, entry, cut = (
            View(checkpoint.source, checkpoint.config, layer),
            checkpoint.entry(name),
            found[name, layer],
        )
        source = coded(entry, view, partial(Unread, entry)) or Unread(entry, view, "float32")
        whole = jax.tree.map(np.asarray, get(name, layer, *shapes, init=init))
        assert is_weight(source) == is_weight(whole)
        for i in range(2):
            mine, expected = (pieces_of(one, cut, name, {"model": i}) for one in (source, whole))
            assert all(map(np.array_equal, mine, expected))

    Model.build(checkpoint.config, compare)
    assert all_of_it <= sum(reads) <= (1 + more) * all_of_it


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        (
            "q4_k",
            "model=4, which gives a device 128 of the 512 inputs of attention.out of layer 0, but 256 are coded",
        ),
        ("nf4,down=int4-g128", "a device 64 of the 256 inputs of mlp.down of layer 0, but 128 are coded together"),
    ],
)
def test_a_mesh_that_would_halve_a_group_is_refused_by_name(recipe, reason):
    config = tiny.config(VALUES)
    few = in_few_bits(shapes_of(config), recipe)
    with pytest.raises(UserError, match=reason):
        spread(config, abstract(model=4), answers(few, config))
    spread(config, abstract(model=1, data=4), answers(few, config))
