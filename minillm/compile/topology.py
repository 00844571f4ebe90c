"""Devices that are not there: enough of them for a compiler to write their machine code.

The compilers come in wheels (the extras `aot-tpu` and `aot-cuda`), and need to be told what they would find on the
machine: which chips, how many, and how they are connected. What they give back are devices that programs can be
compiled for and nothing can run on. A program goes to them if all of its arguments say so:

    (device,) = topology.devices("tpu-v5e")
    x = jax.ShapeDtypeStruct((8, 128), jnp.bfloat16, sharding=SingleDeviceSharding(device))
    topology.compiled(jax.jit(f).lower(x), "tpu")

Arguments that do not say so, and `lower(lowering_platforms=…)`, make JAX compile for the CPU without a word, which
is why `compiled` looks.
"""

import os
from importlib.util import find_spec
from typing import Any

import jax
from jax.experimental import topologies

from ..errors import UserError
from .devices import Device, device_named

PACKAGES = {"tpu": "libtpu", "cuda": "jax_cuda12_plugin"}  # by platform, what the extra aot-PLATFORM brings
MOST = 256

# What libtpu would otherwise ask the machine, or Google's servers, which do not answer elsewhere.
TPU_SURROUNDINGS = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}

# A GpuTargetConfigProto of XLA as text. That cuDNN is said to be there does not put it there.
CUDA_TARGET = """
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  core_count: {sms}
  fpus_per_core: {fp32}
  clock_rate_ghz: {ghz}
  device_memory_size: {memory}
  memory_bandwidth: {bandwidth}
  l2_cache_size: {l2}
  shared_memory_per_core: {shared}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {shared_block}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
device_description_str: "{name}"
"""


def devices(target: str, count: int = 1) -> list[Any]:
    """So many devices of a kind in `DEVICES`, to compile for.

    UserError if the extra that can compile for them is not installed, or so many are not rented together.
    """
    device = device_named(target)
    if not can_compile(device):
        raise UserError(f"compiling for {target} needs more packages; pip install {extra(device)}")
    if device.slices is None:
        return gpus(device, count)
    if count > max(device.slices):
        raise UserError(f"{count} devices of {target} were asked for, expected at most {max(device.slices)}")
    os.environ.update(TPU_SURROUNDINGS | os.environ)
    size = min(size for size in device.slices if size >= count)
    shape = device.slices[size]
    alone: dict[str, Any] = {"chips_per_host_bounds": (1, 1, 1)} if size == 1 else {}
    name = f"{target.removeprefix('tpu-')}:{shape}"
    return list(topologies.get_topology_desc(name, platform="tpu", **alone).devices)[:count]


def gpus(device: Device, count: int) -> list[Any]:
    """NVIDIA devices in one host."""
    chip = device.chip
    assert chip is not None
    text = CUDA_TARGET.format(
        major=chip.capability[0],
        minor=chip.capability[1],
        sms=chip.sms,
        fp32=chip.fp32,
        ghz=chip.ghz,
        memory=device.memory,
        bandwidth=round(device.bandwidth),
        l2=chip.l2,
        shared=chip.shared[0],
        shared_block=chip.shared[1],
        name=device.name.upper(),
    )
    try:
        found = topologies.get_topology_desc(platform="cuda", target_config=text, topology=f"1x1x{count}")
    except NotImplementedError:  # the plugin looked for a GPU, found none and gave up
        raise UserError("JAX has looked for a GPU in vain; set JAX_PLATFORMS=cpu before it starts") from None
    return list(found.devices)


def can_compile(device: Device) -> bool:
    """Whether the compiler for a device is installed."""
    return find_spec(PACKAGES[device.platform]) is not None


def extra(device: Device) -> str:
    """What to install for that."""
    return f"'minillm[aot-{device.platform}]'"


def compiled(lowered: Any, platform: str) -> Any:
    """The program of a `jax.stages.Lowered`; AssertionError if it was compiled for anything but `platform`.

    platform is tpu or cuda. What the compiler raises (memory that does not suffice is a JaxRuntimeError with
    RESOURCE_EXHAUSTED) is passed on.
    """
    program = lowered.compile()
    found = {device.platform for one in jax.tree.leaves(program.input_shardings) for device in one.device_set}
    expected = {"tpu"} if platform == "tpu" else {"gpu", "cuda"}
    assert found, "compiled for no device: the program has no arguments"
    assert found <= expected, f"compiled for {found}, expected {platform}: an argument names no device"
    return program
