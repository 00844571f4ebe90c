"""TPU kernels compiled for v5e and v6e that are not there: down to machine code, at the sizes of real models."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from minillm.compile import topology
from minillm.ops.attention.pallas_tpu import flash_attention_tpu
from minillm.ops.attention.pallas_tpu_paged import paged_attention_tpu
from minillm.ops.qmatmul.pallas_tpu import weight_only_matmul_tpu
from minillm.ops.ssm.pallas_tpu import ssd_tpu
from minillm.ops.ssm.pallas_tpu_scan import selective_scan_tpu

pytestmark = pytest.mark.aot_tpu
every_target = pytest.mark.parametrize("target", ["tpu-v5e", "tpu-v6e"])
BF16, F32, I32 = "bfloat16", "float32", "int32"
POOL = (BF16, 1024, 16, 8, 128)  # 32 MB


@cache
def compile_for(target, function, *arrays, **named):
    """A program for the target, of arrays given as (dtype, sizes …)."""
    (device,) = topology.devices(target)

    def absent(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(device))

    arrays, named = [absent(*one) for one in arrays], {name: absent(*one) for name, one in named.items()}
    return topology.compiled(jax.jit(function).lower(*arrays, **named), "tpu")


def kernels_in(program):
    """How many kernels of ours are in its HLO."""
    return program.as_text().count('custom_call_target="tpu_custom_call"')


def flops(program):
    return program.cost_analysis()["flops"]


@every_target
@pytest.mark.parametrize("dtype", [BF16, F32])
def test_flash_attention_compiles(target, dtype):
    """Llama 3 8B; no scores in memory."""
    b, t, h, g, k = 1, 2048, 32, 8, 128
    keys = (dtype, b, t, g, k)
    program = compile_for(target, flash_attention_tpu, (dtype, b, t, h, k), keys, keys)
    assert kernels_in(program) == 1
    assert flops(program) >= 4 * b * h * t * t * k
    assert program.memory_analysis().temp_size_in_bytes < 4 * t * t


EVERYTHING = {
    "q_pos": (I32, 2, 300),
    "k_pos": (I32, 2, 700),
    "mask": ("bool", 2, 300, 700),
    "q_segment": (I32, 2, 300),
    "k_segment": (I32, 2, 700),
    "sinks": (F32, 8),
    "alibi": (F32, 8),
}


@every_target
def test_flash_attention_compiles_with_everything_at_once(target):
    """Sizes that are no multiples of a tile, too."""
    kernel = partial(flash_attention_tpu, window=9, softcap=2.0, return_lse=True)
    arrays = (BF16, 2, 300, 8, 64), (BF16, 2, 700, 2, 64), (BF16, 2, 700, 2, 96)
    assert kernels_in(compile_for(target, kernel, *arrays, **EVERYTHING)) == 1


@every_target
@pytest.mark.parametrize(("t", "options"), [(1, {}), (5, {"window": 100, "softcap": 2.0, "return_lse": True})])
def test_attention_over_pages_compiles_and_copies_no_page(target, t, options):
    """Llama 3 8B, eight sequences."""
    kernel = partial(paged_attention_tpu, **options)
    table = (I32, 8, 128), (I32, 8)
    program = compile_for(target, kernel, (BF16, 8, t, 32, 128), POOL, POOL, *table, sinks=(F32, 32))
    assert kernels_in(program) == 1
    assert program.memory_analysis().temp_size_in_bytes < 2**21


@every_target
@pytest.mark.parametrize(("t", "states"), [(1000, False), (4, True)])
def test_ssd_compiles(target, t, states):
    """Mamba-2 130M; a chunk that is not full, and the few tokens of a draft."""
    h, k, n = 24, 64, 128
    heads, groups = (BF16, 1, t, h, k), (BF16, 1, t, 1, n)
    kernel = partial(ssd_tpu, softplus=True, return_states=states)
    optional = {"dt_bias": (F32, h), "state": (F32, 1, h, k, n), "lengths": (I32, 1)}
    program = compile_for(target, kernel, heads, (BF16, 1, t, h), (F32, h), groups, groups, (F32, h), **optional)
    assert kernels_in(program) == 1
    assert flops(program) >= 4 * t * h * k * n


@every_target
@pytest.mark.parametrize(("t", "states"), [(1000, False), (4, True)])
def test_the_scan_compiles_and_keeps_no_states(target, t, states):
    """Falcon Mamba 7B; a text, and the few tokens of a draft."""
    i, n = 8192, 16
    kernel = partial(selective_scan_tpu, softplus=True, return_states=states)
    channels, entries = (BF16, 1, t, i), (BF16, 1, t, n)
    optional = {"dt_bias": (F32, i), "state": (F32, 1, i, n), "lengths": (I32, 1)}
    program = compile_for(target, kernel, channels, channels, (F32, i, n), entries, entries, (F32, i), **optional)
    assert kernels_in(program) == 1
    assert flops(program) >= 7 * t * i * n
    assert program.memory_analysis().temp_size_in_bytes < t * i * n * 4 / 3


@every_target
@pytest.mark.parametrize("codes", ["int8", "uint8", "int4", "uint4"])
def test_products_with_weights_of_few_bits_compile_and_widen_none_in_memory(target, codes):
    t, f, d, bits = 8, 4096, 4096, 4 if "4" in codes else 8
    affine = {"w_zero": (I32, f, d // 128)} if codes.startswith("u") else {}
    program = compile_for(target, weight_only_matmul_tpu, (BF16, t, d), (codes, f, d), (F32, f, d // 128), **affine)
    assert kernels_in(program) == 1
    assert flops(program) >= 2 * t * f * d
    memory, weights = program.memory_analysis(), f * d * bits // 8
    assert weights <= memory.argument_size_in_bytes < 1.5 * weights
    assert memory.temp_size_in_bytes < weights // 4


def test_tiles_that_are_too_large_for_vmem_are_refused_by_the_compiler():
    keys = (BF16, 1, 1024, 1, 128)
    kernel = partial(flash_attention_tpu, t_block=1024, s_block=128)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"(?s)RESOURCE_EXHAUSTED.*vmem"):
        compile_for("tpu-v5e", kernel, (BF16, 1, 1024, 12, 128), keys, keys)


def test_a_tile_that_a_tpu_does_not_have_is_refused():
    keys = (BF16, 1, 1024, 8, 128)
    with pytest.raises(ValueError, match="divisible by 8 and 128"):
        compile_for("tpu-v5e", partial(flash_attention_tpu, s_block=96), (BF16, 1, 1024, 32, 128), keys, keys)


def test_a_kernel_is_never_compiled_for_another_device_instead():
    """Without devices in its arguments a program is one for this machine's."""
    x, w = jax.ShapeDtypeStruct((8, 256), jnp.float32), jax.ShapeDtypeStruct((128, 256), jnp.int8)
    with pytest.raises(ValueError, match="Only interpret mode is supported on CPU"):
        jax.jit(weight_only_matmul_tpu).lower(x, w, jax.ShapeDtypeStruct((128, 2), jnp.float32))
