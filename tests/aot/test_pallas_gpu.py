"""GPU kernels compiled for H100 and A100 that are not there: down to machine code, at the sizes of real models.

What is looked at is what the compiler leaves behind: the PTX of the kernel, what ptxas says of its registers, and
the program's memory. None of it has run.
"""

import re
import subprocess
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from minillm.compile import topology
from minillm.ops.attention.naive import naive_attention
from minillm.ops.attention.pallas_gpu import flash_attention_gpu
from minillm.ops.attention.pallas_gpu_paged import paged_attention_gpu
from minillm.ops.qmatmul.pallas_gpu import weight_only_matmul_gpu
from minillm.ops.ssm.pallas_gpu import selective_scan_gpu
from minillm.ops.ssm.pallas_gpu_ssd import ssd_gpu
from minillm.ops.ssm.selective_scan import associative_selective_scan

pytestmark = pytest.mark.aot_cuda
ARCHITECTURE = {"h100": "sm_90a", "a100": "sm_80"}
TRITON = 'custom_call_target="__gpu$xla.gpu.triton"'
PTXAS = "nvidia/cuda_nvcc/bin/ptxas"
SHORT, WIDE, INT, BOOL = jnp.bfloat16, jnp.float32, jnp.int32, jnp.bool_
on_every_target = pytest.mark.parametrize("target", ARCHITECTURE)


class Kernel(NamedTuple):
    """A compiled program, and the PTX of the one kernel in it."""

    program: Any  # jax.stages.Compiled, whose text and memory are never None here
    ptx: str


def compiled(function, target, folder, *arrays, **named) -> Kernel:
    """`function` of arrays given as (dtype, sizes …), for the target; the compiler leaves its files in a folder."""
    (device,) = topology.devices(target)
    sharding = SingleDeviceSharding(device)
    arrays = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for dtype, *shape in arrays]
    named = {name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for name, (dtype, *shape) in named.items()}
    program = jax.jit(function, compiler_options={"xla_dump_to": str(folder)})
    program = topology.compiled(program.lower(*arrays, **named), "cuda")
    (ptx,) = [text for text in map(Path.read_text, folder.glob("*.ptx")) if "_gpu(" in text] or [""]
    return Kernel(program, ptx)


def assert_is_machine_code(kernel, target, folder):
    """One Triton kernel is in the program, its PTX is for the target, and its registers suffice."""
    assert kernel.program.as_text().count(TRITON) == 1
    assert f".target {ARCHITECTURE[target]}" in kernel.ptx
    assert b"\x7fELF" in kernel.program.runtime_executable().serialize()
    assert spilled_bytes(kernel.ptx, target, folder) == 0


def spilled_bytes(ptx, target, folder):
    """Bytes that a thread must keep in memory, having no register left for them: ptxas counts them."""
    (folder / "kernel.ptx").write_text(ptx)
    command = [ptxas(), "-v", f"-arch={ARCHITECTURE[target]}", folder / "kernel.ptx", "-o", folder / "kernel.cubin"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    (stores,) = re.findall(r"(\d+) bytes spill stores", told)
    return int(stores)


def ptxas():
    """NVIDIA's assembler, which the extra brings."""
    places = find_spec("nvidia").submodule_search_locations  # pyright: ignore[reportOptionalMemberAccess]
    return next(file for place in places or () if (file := Path(place).parent / PTXAS).exists())


def assert_uses_tensor_cores(kernel, target):
    """On Hopper four warps share a product, of factors in shared memory; before, each has its own in registers."""
    assert ("wgmma.mma_async" if target == "h100" else "mma.sync") in kernel.ptx


def attention(b, t, s, h, g, k, dtype=SHORT):
    """Shapes of q, k and v."""
    return (dtype, b, t, h, k), (dtype, b, s, g, k), (dtype, b, s, g, k)


FLASH = {
    "Llama 3 8B reads 2,048 tokens": (attention(1, 2048, 2048, 32, 8, 128), {}),
    "Gemma 2 2B reads 8,192 tokens": (attention(1, 8192, 8192, 8, 4, 256), {"softcap": 50.0, "window": 4096}),
    "a token more": (attention(64, 1, 4096, 32, 8, 128), {}),
}


@on_every_target
@pytest.mark.parametrize("name", FLASH)
def test_flash_attention_is_compiled_for_tensor_cores_and_keeps_no_scores(name, target, tmp_path):
    arrays, options = FLASH[name]
    kernel = compiled(partial(flash_attention_gpu, **options), target, tmp_path, *arrays)
    assert_is_machine_code(kernel, target, tmp_path)
    assert "mma" in kernel.ptx
    (_, b, t, h, _), (_, _, s, *_) = arrays[:2]
    if t > 1:
        assert_uses_tensor_cores(kernel, target)
        assert "cp.async.cg.shared.global" in kernel.ptx  # 16 bytes a thread, while the tile before is at work
        assert kernel.program.memory_analysis().temp_size_in_bytes < b * h * t * s / 100


@on_every_target
def test_the_naive_form_keeps_scores_where_the_kernel_does_not(target, tmp_path):
    program, ptx = compiled(naive_attention, target, tmp_path, *attention(1, 2048, 2048, 32, 8, 128))
    assert program.memory_analysis().temp_size_in_bytes > 32 * 2048 * 2048
    assert TRITON not in program.as_text()
    assert not ptx


@on_every_target
def test_flash_attention_is_compiled_with_all_that_it_takes_and_in_float32(target, tmp_path):
    everything = {
        "q_pos": (INT, 2, 64),
        "k_pos": (INT, 2, 1024),
        "mask": (BOOL, 2, 64, 1024),
        "q_segment": (INT, 2, 64),
        "k_segment": (INT, 2, 1024),
        "sinks": (WIDE, 6),
        "alibi": (WIDE, 6),
    }
    function = partial(flash_attention_gpu, window=512, softcap=30.0, return_lse=True)
    kernel = compiled(function, target, tmp_path, *attention(2, 64, 1024, 6, 2, 64, WIDE), **everything)
    assert_is_machine_code(kernel, target, tmp_path)
    assert "mma" not in kernel.ptx  # float32 is not rounded to what tensor cores know


@on_every_target
@pytest.mark.parametrize(("h", "g", "k", "rows"), [(32, 8, 128, 16), (8, 4, 256, 16), (9, 3, 64, 32)])
def test_attention_over_pages_is_compiled_and_copies_no_page(h, g, k, rows, target, tmp_path):
    pages, sequences, splits = 65536 // rows, 8, 8
    pool = SHORT, pages, rows, g, k
    function = partial(paged_attention_gpu, splits=splits)
    arrays = (SHORT, sequences, 1, h, k), pool, pool, (INT, sequences, pages // sequences), (INT, sequences)
    kernel = compiled(function, target, tmp_path, *arrays)
    assert_is_machine_code(kernel, target, tmp_path)
    assert "mma.sync" in kernel.ptx
    parts = splits * sequences * h * (k + 1) * 4  # y and lse of each
    assert kernel.program.memory_analysis().temp_size_in_bytes < 2 * parts


OPTIONAL = {"D": (WIDE, 8192), "dt_bias": (WIDE, 8192), "state": (WIDE, 1, 8192, 16), "lengths": (INT, 1)}
FALCON_MAMBA = [(SHORT, 1, 2048, 8192)] * 2 + [(WIDE, 8192, 16)] + [(SHORT, 1, 2048, 16)] * 2


@on_every_target
def test_the_scan_is_compiled_and_keeps_no_states(target, tmp_path):
    kernel = compiled(partial(selective_scan_gpu, softplus=True), target, tmp_path, *FALCON_MAMBA, **OPTIONAL)
    assert_is_machine_code(kernel, target, tmp_path)
    assert kernel.program.memory_analysis().temp_size_in_bytes == 0
    every = compiled(associative_selective_scan, target, tmp_path / "states", *FALCON_MAMBA).program
    assert every.memory_analysis().temp_size_in_bytes > 2048 * 8192 * 16 * 4


@on_every_target
def test_the_scan_that_lists_its_states_is_compiled(target, tmp_path):
    arrays = [(SHORT, 8, 4, 1536)] * 2 + [(WIDE, 1536, 16)] + [(SHORT, 8, 4, 16)] * 2
    kernel = compiled(partial(selective_scan_gpu, return_states=True), target, tmp_path, *arrays)
    assert_is_machine_code(kernel, target, tmp_path)


def heads(b, t, h, k, g, n, dtype=SHORT):
    """Shapes of x, dt, A, B and C, and of all that may come with them."""
    arrays = (dtype, b, t, h, k), (dtype, b, t, h), (WIDE, h), (dtype, b, t, g, n), (dtype, b, t, g, n)
    return arrays, {"D": (WIDE, h), "dt_bias": (WIDE, h), "state": (WIDE, b, h, k, n), "lengths": (INT, b)}


MAMBA2 = {
    "Mamba-2 2.7B reads 2,048 tokens": heads(1, 2048, 80, 64, 1, 128),
    "Bamba 9B reads 2,048 tokens": heads(1, 2048, 128, 64, 1, 256),
    "in float32, less than a tile of channels": heads(1, 1000, 24, 48, 1, 64, WIDE),
}


@on_every_target
@pytest.mark.parametrize("name", MAMBA2)
def test_ssd_is_compiled_for_tensor_cores_and_keeps_no_states(name, target, tmp_path):
    arrays, named = MAMBA2[name]
    kernel = compiled(partial(ssd_gpu, softplus=True), target, tmp_path, *arrays, **named)
    assert_is_machine_code(kernel, target, tmp_path)
    assert "mma.sync" in kernel.ptx
    assert "tf32" not in kernel.ptx
    assert kernel.program.memory_analysis().temp_size_in_bytes == 0


@on_every_target
@pytest.mark.parametrize(("t", "states"), [(1, False), (4, True)])
def test_a_step_of_ssd_is_compiled_and_so_is_a_draft(t, states, target, tmp_path):
    arrays, named = heads(8, t, 80, 64, 1, 128)
    kernel = compiled(partial(ssd_gpu, softplus=True, return_states=states), target, tmp_path, *arrays, **named)
    assert_is_machine_code(kernel, target, tmp_path)


@on_every_target
@pytest.mark.parametrize(("kind", "bits", "group"), [("int8", 8, 4096), ("int4", 4, 128), ("uint4", 4, 32)])
@pytest.mark.parametrize("t", [8, 512])
def test_products_are_compiled_for_tensor_cores_and_read_codes_as_they_are(kind, bits, group, t, target, tmp_path):
    d, f = 4096, 14336
    scales = SHORT, f, d // group
    zeros = {"w_zero": (INT, f, d // group)} if kind == "uint4" else {}
    kernel = compiled(weight_only_matmul_gpu, target, tmp_path, (SHORT, t, d), (kind, f, d), scales, **zeros)
    assert_is_machine_code(kernel, target, tmp_path)
    assert "mma" in kernel.ptx
    if t == 512:
        assert_uses_tensor_cores(kernel, target)
    memory = kernel.program.memory_analysis()
    small = t * d * 2 + f * d // group * (2 + 4 * len(zeros))
    assert memory.argument_size_in_bytes == f * d * bits // 8 + small
    assert memory.temp_size_in_bytes == 0


@on_every_target
def test_tiles_that_shared_memory_cannot_hold_are_refused_by_the_compiler(target, tmp_path):
    function = partial(flash_attention_gpu, q_block=512, s_block=512)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"[Ss]hared memory"):
        compiled(function, target, tmp_path, *attention(1, 2048, 2048, 8, 8, 256))
