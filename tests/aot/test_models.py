"""Every family's prefill and decode step compiles for TPU and CUDA, in place, and sends what was planned."""

import dataclasses

import jax
import pytest
from families import FAMILIES

from minillm.archs import find_hf
from minillm.compile import plan as plans
from minillm.compile.aot import compile_step
from minillm.compile.devices import DEVICES
from minillm.compile.plan import plan
from minillm.compile.steps import Work, narrowed, on_devices, shapes_of
from minillm.config import Fields
from minillm.errors import UserError

TARGETS = [
    pytest.param(target, marks=pytest.mark.aot_tpu if target.startswith("tpu") else pytest.mark.aot_cuda)
    for target in ("tpu-v5e", "h100")
]
WORK = Work(batch=2, context=64)
MESHES = dict.fromkeys(FAMILIES, "model=2") | {"mixtral": "expert=2,model=2", "llama": "data=2,model=2"}


@pytest.fixture(autouse=True)
def _as_users_do():
    """Models are compiled as `minillm compile` does: bfloat16, with JAX's own rules."""
    with jax.numpy_dtype_promotion("standard"), jax.default_matmul_precision(None):
        yield


def planned(values: dict, target: str, mesh: str | None = None, work: Work = WORK):
    """The plan of a small model on devices to compile for."""
    config = find_hf(values["model_type"], "test").config_from_hf(Fields(values, "config.json"))
    shapes = narrowed(shapes_of(config), "bfloat16")
    model, count, place = on_devices(shapes, config, target, mesh, real=True)
    return plan("it", model, work, DEVICES[target], count, place)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_prefill_and_decode_compile_and_update_memory_in_place(family, target):
    made = planned(FAMILIES[family], target)
    for name, traced in made.programs.items():
        program = compile_step("it", name, traced, made)
        assert program.in_place >= made.state
        assert made.weights + made.state <= program.peak <= made.device.memory
        assert not program.calls


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("family", ["llama", "mixtral", "deepseek_v3", "jamba", "qwen3_next"])
def test_on_a_mesh_they_send_what_was_planned(family, target):
    made = planned(FAMILIES[family], target, MESHES[family])
    program = compile_step("it", "decode", made.programs["decode"], made)
    assert program.in_place >= made.state
    assert program.calls
    # sums of sums may become one, and an array be gathered by summing it with zeros
    sent, said = (sum(one.values()) for one in (program.received, made.decode.received))
    assert 0.7 * said <= sent <= 1.1 * said


LARGE = FAMILIES["llama"] | {"hidden_size": 8192, "intermediate_size": 65536, "vocab_size": 32000, "head_dim": 128}
LARGE |= {"num_attention_heads": 64, "num_key_value_heads": 8}


@pytest.mark.aot_tpu
def test_a_model_that_does_not_fit_is_refused_by_the_compiler_too_and_fits_on_a_mesh(monkeypatch):
    large = LARGE | {"num_hidden_layers": 5}
    with pytest.raises(UserError, match=r"18\.\d+ GB of weights .* has 17.18 GB"):
        planned(large, "tpu-v5e")
    monkeypatch.setattr(plans, "check_fits", lambda *_: None)
    made = planned(large, "tpu-v5e")
    with pytest.raises(UserError, match=r"decode does not fit on 1 tpu-v5e: .* exceeds available HBM \(15.75G\)"):
        compile_step("it", "decode", made.programs["decode"], made)
    monkeypatch.undo()
    made = planned(large, "tpu-v5e", "model=2")
    assert compile_step("it", "decode", made.programs["decode"], made).peak < made.device.memory


@pytest.mark.aot_cuda
def test_what_the_cuda_compiler_takes_is_held_against_the_device():
    made = planned(FAMILIES["phi3"], "a100")
    small = dataclasses.replace(made, device=dataclasses.replace(made.device, memory=made.weights))
    with pytest.raises(UserError, match=r"with temporaries, and has"):
        compile_step("it", "decode", made.programs["decode"], small)
