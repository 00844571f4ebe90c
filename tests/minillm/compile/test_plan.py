"""Memory and bounds: what fits, what is refused before anything is traced, and what the figures follow from."""

import json
from pathlib import Path

import jax
import pytest
from families import FAMILIES

import minillm
from minillm.archs import find_hf
from minillm.compile import plan as plans
from minillm.compile import topology
from minillm.compile.cost import Cost
from minillm.compile.devices import DEVICES
from minillm.compile.plan import plan, roofline
from minillm.compile.steps import Work, bytes_a_device, config_in, in_few_bits, narrowed, on_devices, shapes_of
from minillm.config import Fields
from minillm.errors import UserError

CONFIGS = Path(__file__).parents[3] / "bench" / "configs"


def model_of(family: str):
    config = find_hf(family, "test").config_from_hf(Fields(FAMILIES[family], "config.json"))
    return config, narrowed(shapes_of(config), "bfloat16")


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llama-3-70b", 70.55),
        ("mixtral-8x7b", 46.70),
        ("deepseek-v3", 671.03),
        ("gemma-2b", 2.51),
        ("phi-3-mini", 3.82),
    ],
)
def test_configs_of_known_models_have_the_parameters_that_these_are_known_for(name, billions):
    shapes = shapes_of(config_in(CONFIGS / f"{name}.json"))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e9 == pytest.approx(billions, abs=0.005)


def test_what_cannot_fit_is_refused_with_the_numbers_before_anything_is_traced(monkeypatch):
    monkeypatch.setattr(plans, "traced", None)
    config = config_in(CONFIGS / "llama-3-70b.json")
    shapes = narrowed(shapes_of(config), "bfloat16")
    with pytest.raises(
        UserError, match=r"141.11 GB of weights .* 1 x 8192 tokens, and has 85.90 GB. It takes 2 devices"
    ):
        plan("it", shapes, Work(1, 8192), DEVICES["h100"], 1, None)


def test_a_mesh_divides_weights_and_memory():
    config, shapes = model_of("llama")
    work, device = Work(4, 64), DEVICES["tpu-v5e"]
    alone = plan("it", shapes, work, device, 1, None)
    spread = plan("it", *lying(shapes, config, "data=2,model=2", work, device))
    matrices = sum(2 * leaf.size for leaf in jax.tree.leaves(shapes) if len(leaf.shape) > 1)
    assert alone.weights - spread.weights == matrices / 2
    assert spread.state == alone.state / 4
    assert spread.decode.products[2] == alone.decode.products[2] / 4
    assert spread.decode.calls == {"all-reduce": 5, "all-gather": 1}  # two a layer and the embedding; logits


def lying(shapes, config, mesh, work, device):
    model, count, place = on_devices(shapes, config, device.name, mesh, real=False)
    return model, work, device, count, place


@pytest.mark.parametrize("recipe", ["int8,embed=q8_0", "w8a8,down=keep"])
def test_few_bits_take_what_a_quantised_model_takes(recipe):
    lm = minillm.init(FAMILIES["llama"])
    real, _ = lm.quantize(recipe)
    assert bytes_a_device(in_few_bits(lm.shapes, recipe)) == sum(
        leaf.nbytes for leaf in jax.tree.leaves(real.model)
    )


def test_few_bits_can_be_planned_and_are_divided_by_a_mesh():
    config, shapes = model_of("llama")
    few = narrowed(in_few_bits(shapes, "int4-g32"), "bfloat16")
    made, plain = (plan("it", one, Work(1, 64), DEVICES["h100"], 1, None) for one in (few, shapes))
    assert made.weights < plain.weights / 3
    assert made.decode.read < plain.decode.read / 2
    spread = plan("it", *lying(few, config, "model=2", Work(1, 64), DEVICES["h100"]))
    norms = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(few) if len(leaf.shape) == 1)
    assert spread.weights - norms == (made.weights - norms) / 2
    assert spread.decode.products[4] == made.decode.products[4] / 2
    with pytest.raises(
        UserError, match=r"model=2, which gives a device 128 of the 256 inputs of mlp.down of layer 0"
    ):
        lying(in_few_bits(shapes, "q4_k"), config, "model=2", Work(1, 64), DEVICES["h100"])
    with pytest.raises(UserError, match="method gptq"):
        in_few_bits(shapes, "gptq:int4-g32")


def test_the_slowest_of_the_three_is_the_bound():
    device = DEVICES["h100"]
    cost = Cost(read=device.bandwidth, written=device.bandwidth)
    cost.products.update({2: round(device.peak[2]), 1: round(device.peak[1])})
    cost.received["all-reduce"] = round(device.links)
    assert roofline(cost, device) == {"products": 2, "memory": 2, "links": 2}


def test_tokens_and_dollars_follow_from_the_bound():
    _, shapes = model_of("llama")
    made = plan("it", shapes, Work(8, 64), DEVICES["tpu-v5e"], 1, None)
    assert made.tokens_a_second == 8 / max(roofline(made.decode, made.device).values())
    assert made.dollars(1000, price=3.6) == pytest.approx(1.0)


def test_devices_that_cannot_be_compiled_for_name_what_to_install(monkeypatch):
    monkeypatch.setattr(topology, "find_spec", lambda name: None)
    for target, extra in (("tpu-v6e", "aot-tpu"), ("h100", "aot-cuda")):
        with pytest.raises(UserError, match=rf"pip install 'minillm\[{extra}\]'"):
            topology.devices(target)
    with pytest.raises(UserError, match="tpu-v5e, tpu-v5p, tpu-v6e, h100"):
        topology.devices("tpu-v9")


def test_what_was_compiled_for_the_cpu_is_not_taken_for_anything_else():
    lowered = jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((2,), "float32"))
    with pytest.raises(AssertionError, match=r"compiled for {'cpu'}, expected tpu"):
        topology.compiled(lowered, "tpu")


def test_configs_say_where_they_are_from():
    for path in CONFIGS.glob("*.json"):
        assert "/" in json.loads(path.read_text())["_name_or_path"]
