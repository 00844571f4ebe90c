"""The roof is the lower of two limits, and operations are those of the definition."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import roofline
from bench.roofline import KERNELS, Kernel, Work, least_seconds
from minillm import ops

POSITIVE = st.floats(1e-3, 1e12)


@settings(max_examples=30)
@given(POSITIVE, POSITIVE, POSITIVE, POSITIVE)
def test_the_roof_is_the_lower_of_two_limits(flops, size, peak, bandwidth):
    limits = {"bandwidth": bandwidth, "float32": peak}
    seconds = least_seconds(Work(flops, size), limits)
    assert seconds >= flops / peak
    assert seconds >= size / bandwidth
    assert seconds in (flops / peak, size / bandwidth)


@pytest.fixture
def fast_machine(monkeypatch):
    """A byte and an operation a second, and no waiting."""
    monkeypatch.setattr(roofline, "wait_for_quiet", lambda: None)
    monkeypatch.setattr(roofline, "memory_bandwidth", lambda: 1.0)
    monkeypatch.setattr(roofline, "peak", lambda kind: 1.0)


@pytest.mark.usefixtures("fast_machine")
def test_a_program_that_takes_twice_the_least_time_has_half_of_the_roof():
    report = roofline.measure({"it": (Work(30, 10), lambda: 60.0), "copy": (Work(0, 10), lambda: 20.0)}, rounds=2)
    assert {name: one["median"] for name, one in report["share_of_roof"].items()} == {"it": 0.5, "copy": 0.5}
    assert report["points"]["it"]["flops_per_byte"] == 3


def test_pairs_that_attention_does_not_see_are_no_work():
    t, past, k, j = 5, 3, 4, 6
    seen = sum(past + i + 1 for i in range(t))
    assert roofline.attention_flops(2, t, past, 3, 2, k, j) == 2 * seen * 6 * 2 * (k + j)


def test_a_product_is_counted_as_xla_counts_it():
    x, w = np.zeros((64, 32), np.float32), np.zeros((16, 32), np.float32)
    counted = jax.jit(lambda x, w: x @ w.T).lower(x, w).compile().cost_analysis()
    assert counted is not None
    assert roofline.product_flops(64, 4, 8, 16) == counted["flops"]


def test_a_kernel_is_called_on_as_many_copies_as_no_cache_holds(monkeypatch):
    monkeypatch.setattr(roofline, "COLD", 10_000)
    calls = []

    def norm(x, weight, eps):
        calls.append(x.shape)
        return ops.rms_norm(x, weight, eps)

    sizes = {"t": 8, "d": 64}
    work, turn = roofline.kernel_turn(Kernel("rms_norm", norm, sizes, lambda t, d: 4 * t * d, {"eps": 1e-5}))
    assert work == Work(4 * 8 * 64, 4 * (8 * 64 + 64 + 8 * 64))
    with jax.disable_jit():
        calls.clear()
        turn()
    assert len(calls) == 3  # of 4,352 bytes each


def test_every_kernel_names_the_letters_of_its_op():
    for kernel in KERNELS.values():
        assert kernel.flops(**kernel.sizes) > 0
        assert kernel.sizes.keys() == roofline.OPS[kernel.op].cases[0].sizes.keys() - {"b"} | (
            {"b"} & kernel.sizes.keys()
        )
