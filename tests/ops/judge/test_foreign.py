"""Correct kernels by other people must pass: the judge raises no false alarms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minillm import ops


def jax_attention(q, k, v, *, causal=True, scale=None, mask=None):
    """`jax.nn.dot_product_attention`, whose causal mask starts at the first key: ours ends at the last."""
    t, s = q.shape[1], k.shape[1]
    end = jnp.tril(jnp.ones((t, s), bool), s - t)[None, None]
    if mask is not None:
        end = mask[:, None] & (end if causal else True)
    return jax.nn.dot_product_attention(q, k, v, mask=end if causal or mask is not None else None, scale=scale)


def test_jax_nn_dot_product_attention_passes():
    """In float32: the products it asks for in narrower types are not compiled on a CPU."""
    supports = {"j": (4, 8, 16)}  # its values are as wide as its keys
    report = ops.validate("attention", ops.judge.compiled(jax_attention), seeds=1, supports=supports)
    report.assert_ok()
    assert report.ran["accuracy"] >= 40
    assert "no keyword 'window'" in report.uncovered.values()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gelu_tanh_as_in_the_paper_passes(dtype):
    """1 + tanh has no digits left far below zero, and needs none beside the other values."""

    def gelu_tanh(x):
        z, half = x.astype(np.float32), np.float32(0.5)
        inner = np.float32(np.sqrt(2 / np.pi)) * (z + np.float32(0.044715) * z * z * z)
        return (half * z * (1 + np.tanh(inner))).astype(x.dtype)

    ops.validate("gelu_tanh", gelu_tanh, dtype=dtype, arrays="numpy").assert_ok()


def test_swiglu_in_bfloat16_throughout_passes():
    """A product's own rounding may be larger than its row and channel let expect."""
    ops.validate("swiglu", lambda gate, up: jax.nn.silu(gate) * up, dtype="bfloat16").assert_ok()


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_torch_activations_and_norms_pass(dtype):
    from torch.nn import functional  # pyright: ignore[reportMissingImports]

    kernels = {
        "gelu": functional.gelu,
        "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
        "softplus": functional.softplus,
        "swiglu": lambda gate, up: functional.silu(gate) * up,
        "layer_norm": lambda x, weight, bias, eps: functional.layer_norm(x, weight.shape, weight, bias, eps),
        "rms_norm": lambda x, weight, eps: functional.rms_norm(x, weight.shape, weight, eps),
    }
    for op, kernel in kernels.items():
        ops.validate(op, kernel, dtype=dtype, arrays="torch").assert_ok()


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torch_scaled_dot_product_attention_passes(dtype):
    import torch  # pyright: ignore[reportMissingImports]

    def sdpa(q, k, v, *, causal=True, scale=None):
        t, s = q.shape[1], k.shape[1]
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        mask = torch.ones(t, s, dtype=torch.bool).tril(s - t) if causal else None
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True)
        return y.transpose(1, 2)

    report = ops.validate("attention", sdpa, dtype=dtype, arrays="torch", seeds=1)
    report.assert_ok()


@pytest.mark.oracle
def test_tokamax_attention_passes():
    """In float32: the product it asks for in bfloat16 is not compiled for a single key on a CPU."""
    import tokamax  # pyright: ignore[reportMissingImports]
    from absl import flags  # pyright: ignore[reportMissingModuleSource]

    def attention(q, k, v, *, causal=True, scale=None):
        t, s = q.shape[1], k.shape[1]
        mask = jnp.tril(jnp.ones((t, s), bool), s - t)[None, None] if causal else None
        return tokamax.dot_product_attention(q, k, v, mask=mask, scale=scale, implementation="xla")

    flags.FLAGS.mark_as_parsed()  # it reads its options from a command line that pytest owns
    with jax.numpy_dtype_promotion("standard"):  # it mixes dtypes
        report = ops.validate("attention", ops.judge.compiled(attention), seeds=1, supports={"j": (4, 8, 16)})
    report.assert_ok()
