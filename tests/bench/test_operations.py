"""A run of a program is cut into what its trace shows: products, other operations, nothing."""

import jax
import jax.numpy as jnp
import pytest

from bench.operations import Ran, covered, ran_in, summary

# Two runs of ten milliseconds: a product for 4, something else half beside it for 4, nothing for the rest.
STEPS = [
    Ran("jit_step", str(run), name, run / 100 + begin / 1000, run / 100 + end / 1000)
    for run in (0, 1)
    for name, begin, end in (("dot.7", 0, 4), ("add_rsqrt_fusion.1", 2, 6), ("copy", 9.5, 10))
]


def test_time_is_counted_once_whatever_runs_beside():
    assert covered(STEPS[:3]) == pytest.approx(0.0065)
    assert covered(STEPS[:3][::-1]) == pytest.approx(0.0065)
    assert covered([]) == 0


def test_a_run_is_products_other_operations_and_nothing():
    found = summary([*STEPS, Ran("jit_squeeze", "9", "copy", 0.02, 0.021)])
    assert (found["program"], found["runs"]) == ("jit_step", 2)
    assert found["ms"] == {"products": 4.0, "other operations": 2.5, "nothing": 3.5}
    assert found["operations"] == {"products": 1, "others": 2}
    assert found["longest, ms"] == {"dot": 4.0, "add_rsqrt_fusion": 4.0, "copy": 0.5}


def test_xla_says_what_it_ran(tmp_path):
    x = jnp.ones((64, 64))
    step = jax.jit(lambda x: jnp.sin(x @ x))
    step(x).block_until_ready()
    with jax.profiler.trace(str(tmp_path)):
        step(x).block_until_ready()
    [path] = tmp_path.rglob("*.xplane.pb")
    found = summary([*ran_in(path)])
    assert found["runs"] == 1
    assert found["operations"]["products"] == 1
    assert found["ms"]["products"] > 0
