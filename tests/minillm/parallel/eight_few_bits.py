"""Weights in few bits over eight pretend devices; test_on_eight_devices.py runs this."""

import functools
from typing import Any

import families
import jax
import numpy as np
import others
import pytest
import tiny
from agreement import QUICK
from jax.sharding import PartitionSpec as P

import minillm
from minillm.checkpoint.folder_writer import write_folder
from minillm.checkpoint.quantised_folder import write_quantised
from minillm.errors import UserError
from minillm.parallel import answers, new_mesh, spread
from minillm.parallel.few_bits import cut_weight
from minillm.parallel.model import Placed, joined, placed
from minillm.parallel.rules import Cut
from minillm.quant.recipes import PRODUCTS, STORAGES, recipe_named
from minillm.quant.scaled import Scaled
from minillm.span import Span

LLAMA = families.FAMILIES["llama"] | {"num_hidden_layers": 1}
MIXTRAL = families.FAMILIES["mixtral"] | {"num_hidden_layers": 1}
F, D, E = 6, 512, 4
INTS = ["int8", "int4-g32-affine", "ternary"]


def on_mesh(lm, mesh):
    """A model that is whole, on a mesh."""
    return spread(lm.config, new_mesh(mesh), answers(jax.tree.map(np.asarray, lm.model), lm.config))


def assert_same_arrays(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.sharding == other.sharding
        assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("values", "mesh", "recipe"),
    [
        (LLAMA, "model=4", "w8a8"),
        (LLAMA, "data=2,model=4", "int4-g32-affine,out=int8-affine,down=fp8"),
        (MIXTRAL, "model=2,expert=2", "nvfp4,out=q4_0,embed=fp8-tensor"),
        (LLAMA, "model=2", "q4_k,down=mxfp4"),
        pytest.param(LLAMA, "data=2", "ternary,down=fp8-tile", marks=pytest.mark.slow),
        pytest.param(MIXTRAL, "expert=4,data=2", "fp8-tile,down=nvfp4", marks=pytest.mark.slow),
    ],
)
def test_rounding_on_a_mesh_gives_the_bits_of_rounding_before(values, mesh, recipe):
    few, changes = minillm.init(values).quantize(recipe)
    found, told = minillm.init(values, mesh=new_mesh(mesh)).quantize(recipe)
    assert_same_arrays(found.model, on_mesh(few, mesh))
    assert [(change.place, change.recipe) for change in told] == [(one.place, one.recipe) for one in changes]


TRIED = ["w8a8", "w4a8", "fp8-a8", "nvfp4-a4", "fp8", "scaled w8a8", "experts w8a8"]


def weight_of(name: str, rng: np.random.Generator):
    """A weight [f, d], or one of e experts, or one with factors."""
    kind, _, recipe = name.rpartition(" ")
    one, matrices = recipe_named(recipe), E if kind == "experts" else 1
    stack = [one.storage.encode(rng.normal(size=(F, D)).astype(np.float32)) for _ in range(matrices)]
    parts = (np.stack(part) if kind == "experts" else part[0] for part in zip(*stack, strict=True))
    weight = one.weight(tuple(parts), D, False)
    factors: Any = np.exp2(rng.integers(-2, 3, D)).astype(np.float32)
    return Scaled(weight, factors, True) if kind == "scaled" else weight


def cut_inputs(name: str, weight, mesh):
    """The same with a part of the inputs on each device."""
    experts = name.startswith("experts")
    shape, axes = ((E // 2, F, D // 2), ("expert", None, "model")) if experts else ((F, D // 2), (None, "model"))
    name, cut = "moe.down" if experts else "mlp.down", Cut(mesh, shape, axes, ((D, D // 2),))
    return joined(
        cut_weight(weight, cut, name, lambda part, its_cut: Placed(name, its_cut, placed(part, its_cut))).T
    )


@pytest.mark.parametrize(
    "tried",
    [TRIED, pytest.param([*PRODUCTS, *INTS, *STORAGES, *TRIED[-2:]], marks=pytest.mark.slow)],
    ids=["few", "all"],
)
def test_products_with_inputs_on_several_devices_are_those_of_one(tried):
    rng, mesh = np.random.default_rng(0), new_mesh("model=2,expert=2")
    x, sizes = rng.normal(size=(5, D)).astype(np.float32), np.array([2, 0, 2, 1], np.int32)
    x[1] *= 100  # scales are those of single tokens
    x[2, : D // 2] /= 100  # and differ from device to device
    weights = {name: weight_of(name, rng) for name in tried}

    def multiply(weights, x, sizes):
        experts = {name: name.startswith("experts") for name in weights}
        return {name: w.grouped(x, sizes) if experts[name] else x @ w for name, w in weights.items()}

    share = {name: cut_inputs(name, weight, mesh) for name, weight in weights.items()}
    specs, arrays = (jax.tree.map(find, share) for find in (lambda leaf: leaf.cut.spec, lambda leaf: leaf.array))
    into = (specs, P(None, "model"), P())
    on_all = jax.shard_map(multiply, mesh=mesh, in_specs=into, out_specs=P(), check_vma=False)
    many = jax.jit(on_all, compiler_options=QUICK)(arrays, x, sizes)
    one = jax.jit(multiply, compiler_options=QUICK)({name: w.T for name, w in weights.items()}, x, sizes)
    for name in weights:
        error = np.abs(many[name] - one[name]).max(-1) / np.abs(one[name]).max(-1)
        assert error.max() < 1e-5, name


def logits(model) -> np.ndarray:
    """Of every token of two texts."""
    tokens = np.random.default_rng(1).integers(0, families.V, (2, 24)).astype(np.int32)
    at = Span.chain(np.zeros(2, np.int32), np.full(2, 24, np.int32), 24)
    return np.asarray(jax.jit(lambda model: model(tokens, None, at)[0], compiler_options=QUICK)(model))


@pytest.fixture(scope="module")
def expected():
    """What one device makes of a model in few bits, and the model."""

    @functools.cache
    def found(family: str, recipe: str):
        lm, _ = minillm.init({"llama": LLAMA, "mixtral": MIXTRAL}[family]).quantize(recipe)
        return lm, logits(lm.model)

    return found


MIXED = "fp8,qkv=q4_k,out=int4-g32,down=nvfp4"
QUICKLY = [("llama", mesh, MIXED) for mesh in ("model=4", "data=2,model=2")] + [("mixtral", "expert=2", MIXED)]
SINGLE = ["int4-g32", "q4_k,out=q8_0,down=q5_0", "fp8", "nvfp4"]
MORE = [("mixtral", mesh, one) for mesh in ("model=2", "model=4", "expert=2", "data=2,model=2") for one in SINGLE]


@pytest.mark.parametrize(
    ("family", "mesh", "recipe"), [*QUICKLY, *(pytest.param(*one, marks=pytest.mark.slow) for one in MORE)]
)
def test_a_model_in_few_bits_says_on_a_mesh_what_it_says_on_one_device(family, mesh, recipe, expected):
    lm, alone = expected(family, recipe)
    tiny.assert_agrees(logits(on_mesh(lm, mesh)), alone)


@pytest.mark.parametrize(
    "mesh", ["model=4", *(pytest.param(m, marks=pytest.mark.slow) for m in ("model=2", "data=2"))]
)
def test_a_model_that_rounds_x_says_nearly_always_the_same(mesh, expected):
    """Sums in another order move x by an ulp, and where that is between two codes the other one is taken."""
    lm, alone = expected("llama", "w8a8")
    error = np.abs(logits(on_mesh(lm, mesh)) - alone).max(-1) / np.abs(alone).max()
    assert np.median(error) <= tiny.RELATIVE
    assert error.max() < 0.01


def test_few_bits_in_files_are_what_they_are_in_memory(tmp_path):
    lm, changes = minillm.init(LLAMA).quantize("w8a8,out=nvfp4")
    write_quantised(tmp_path / "own", lm.model, changes, LLAMA, {})
    write_folder(tmp_path / "plain", minillm.init(LLAMA).model, LLAMA, dtype="F32")
    others.quantise(tmp_path / "plain", tmp_path, others.FORMATS["gptq 4"])
    for folder in (tmp_path / "own", tmp_path / "few"):
        many = minillm.load(folder, mesh=new_mesh("data=2,model=4"))
        assert_same_arrays(many.model, on_mesh(minillm.load(folder), "data=2,model=4"))
        assert jax.tree.map(lambda x: (x.shape, x.sharding), many.shapes) == jax.tree.map(
            lambda x: (x.shape, x.sharding), many.model
        )


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        (
            "q4_k",
            r"blocks\[0\].out cannot be stored as q4_k: mesh has model=4, which gives a device 128 of the 512",
        ),
        (
            "int8,up=fp8-tile",
            r"blocks\[1\].up cannot be stored as fp8-tile: .* scales are made of numbers of several",
        ),
        ("ternary", r"cannot be stored as ternary: .* do it without a mesh, by minillm quantize"),
        ("gptq:int4-g32", "looks into blocks"),
        ("auto:4", "looks into blocks"),
    ],
)
def test_what_cannot_be_rounded_in_pieces_is_refused_by_name(recipe, reason):
    lm = minillm.init(LLAMA, mesh=new_mesh("model=4"))
    with pytest.raises(UserError, match=reason):
        lm.quantize(recipe)


def test_a_model_on_a_mesh_is_quantised_once():
    few, _ = minillm.init(LLAMA, mesh=new_mesh("model=4")).quantize("int8,embed=keep")
    with pytest.raises(UserError, match="is stored as Coded, expected plain numbers: quantise a model once"):
        few.quantize("int4-g32")
