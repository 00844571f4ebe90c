"""Operations, bytes and messages are counted as they happen: loops by their turns, slices by their size."""

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from minillm.archs import find_hf
from minillm.compile.cost import Cost, count
from minillm.compile.plan import count_at
from minillm.compile.steps import Work, narrowed, shapes_of, traced
from minillm.config import Fields
from minillm.ops.qmatmul.matmul import int_product

F32, BF16, I32 = jnp.float32, jnp.bfloat16, jnp.int32


def cost_of(f, *shapes, known=None) -> Cost:
    """The cost of f of arrays of these shapes, each a shape and a dtype."""
    arguments = [jax.ShapeDtypeStruct(*one) for one in shapes]
    return count(jax.jit(f).trace(*arguments).jaxpr, known or {})


@given(st.integers(1, 50))
def test_a_scan_costs_its_body_as_often_as_it_turns(n):
    def f(x, w):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, length=n)[0]

    cost = cost_of(f, ((4, 8), F32), ((8, 8), F32))
    assert cost.products == {4: n * 2 * 4 * 8 * 8}
    assert cost.read == 4 * (4 * 8 + 8 * 8)  # the matrix stays on the chip
    assert cost.written == 4 * 4 * 8


@settings(max_examples=20)
@given(st.integers(0, 20), st.integers(0, 20))
def test_a_loop_with_known_bounds_turns_that_often(start, stop):
    def f(rows, first, last):
        return jax.lax.fori_loop(first, last * 2, lambda i, y: y + jnp.sum(rows[i] @ rows[i]), 0.0)

    known = {1: np.int32(start), 2: np.int32(stop)}
    cost = cost_of(f, ((40, 16), F32), ((), I32), ((), I32), known=known)
    turns = max(2 * stop - start, 0)
    assert cost.products == Counter({4: turns * 2 * 16})
    bounds = 4 + 4 * (turns > 0)
    assert cost.read == min(2 * turns * 64, 40 * 64) + bounds  # two slices a turn, and no more than there is


def test_a_loop_whose_turns_nobody_knows_is_not_guessed():
    with pytest.raises(NotImplementedError, match="not known"):
        cost_of(lambda x, n: jax.lax.fori_loop(0, n, lambda i, x: x * 2, x), ((4,), F32), ((), I32))
    with pytest.raises(NotImplementedError, match="count up"):
        cost_of(lambda x: jax.lax.while_loop(lambda x: x[0] > 1, lambda x: x / 2, x), ((4,), F32))


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_what_only_a_cpu_multiplies_otherwise_is_not_counted_for_other_devices(rows):
    """One row of bytes takes four times the products there (`weights_first`), and no time more."""
    cost = cost_of(int_product, ((rows, 64), jnp.int8), ((32, 64), jnp.int8))
    assert cost.products == {1: 2 * rows * 32 * 64}


def test_products_agree_with_xla_where_nothing_loops():
    def f(x, w, v):
        return jnp.einsum("btd,df->btf", x, w) @ v

    shapes = ((2, 3, 32), F32), ((32, 64), F32), ((64, 16), F32)
    theirs: Any = jax.jit(f).lower(*(jax.ShapeDtypeStruct(*one) for one in shapes)).compile().cost_analysis()
    cost = cost_of(f, *shapes)
    assert cost.flops == theirs["flops"]
    assert cost.read == 4 * sum(np.prod(shape) for shape, _ in shapes)


def test_numbers_count_with_the_bytes_they_are_stored_in():
    def f(x, codes, scale):
        return x @ (codes.astype(F32) * scale).T

    cost = cost_of(f, ((2, 64), F32), ((32, 64), jnp.int8), ((32, 1), F32))
    assert cost.read == 4 * 2 * 64 + 32 * 64 + 4 * 32
    assert cost.products == {4: 2 * 2 * 64 * 32}


def test_of_an_update_in_place_only_what_is_new_is_written_and_of_a_gather_what_is_taken():
    def f(memory, row, i, ids):
        taken = memory[ids]
        return memory.at[i].set(row), taken

    cost = cost_of(f, ((1000, 8), BF16), ((8,), BF16), ((), I32), ((3,), I32))
    assert cost.read == 2 * 8 + 2 * 3 * 8 + 4 + 3 * 4
    assert cost.written == 2 * 8 + 2 * 3 * 8


def test_messages_are_counted_for_the_axis_they_go_along():
    mesh = AbstractMesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    def each(x, w):
        y = jax.lax.psum(x @ w, "model")
        return jax.lax.all_gather(y, "data", tiled=True)

    f = jax.shard_map(each, mesh=mesh, in_specs=(P("data", "model"), P("model")), out_specs=P(), check_vma=False)
    cost = cost_of(f, ((8, 16), F32), ((16, 32), F32))
    assert cost.products == {4: 2 * 4 * 4 * 32}  # of one device
    assert cost.calls == {"all-reduce": 1, "all-gather": 1}
    assert cost.received == {"all-reduce": 2 * 3 / 4 * 4 * 4 * 32, "all-gather": 1 / 2 * 4 * 8 * 32}
    assert cost.read == 4 * (4 * 4 + 4 * 32)


def family_cost(family: str, work: Work, tokens: int, start: int, **changes) -> tuple[Cost, dict]:
    """What `advance` costs for a small model of a family, and its config.json."""
    values = FAMILIES[family] | changes
    config = find_hf(family, "test").config_from_hf(Fields(values, "config.json"))
    model = narrowed(shapes_of(config), "bfloat16")
    with jax.numpy_dtype_promotion("standard"):
        return count_at(traced(model, work, tokens, None), work, start, tokens), values


@pytest.mark.parametrize(("batch", "start"), [(2, 63), (3, 40)])
def test_a_decode_step_is_its_matrices_and_the_rows_it_looks_at(batch, start):
    cost, c = family_cost("llama", Work(batch, 64), 1, start)
    d, f, v, h, g, k = c["hidden_size"], c["intermediate_size"], c["vocab_size"], 8, 4, c["head_dim"]
    layers = c["num_hidden_layers"]
    matrices = layers * (d * (h + 2 * g) * k + h * k * d + 3 * d * f) + v * d
    attention = layers * 2 * h * k * 64  # a short memory is looked at as a whole
    assert cost.products == {2: 2 * batch * (matrices + attention)}
    norms = (2 * layers + 1) * d
    rows = layers * batch * 2 * g * k
    small = 4 * 4 * batch  # seed, token, start, n
    assert cost.read == pytest.approx(2 * (matrices + norms + 64 * rows), abs=small)
    assert cost.written == 2 * rows + 4 * batch


def test_a_long_memory_is_read_as_far_as_it_is_written():
    places = 0, 2 << 12, (1 << 16) - 1
    one = {"num_hidden_layers": 1}
    first, some, last = (family_cost("llama", Work(1, 1 << 16), 1, start, **one)[0].read for start in places)
    block = 2 * 2 * 4 * 64 * 4096  # keys and values of 4 heads of 64 in 4,096 rows, in bfloat16
    assert (some - first, last - first) == (2 * block, 15 * block)


def test_of_experts_those_that_are_chosen_are_read_and_a_large_batch_reads_all():
    changes = {"num_local_experts": 16, "num_hidden_layers": 1}
    few, all_ = (family_cost("mixtral", Work(b, 16), 1, 15, **changes)[0].read for b in (1, 30))
    expert = 2 * (3 * 256 * 256)  # in bfloat16
    state = 2 * 4 * 32 * 16 * 2
    assert all_ - few - 29 * state == pytest.approx(14 * expert, rel=1e-2)  # 2 of 16 are enough for one token


def test_a_recurrence_costs_the_same_wherever_the_text_stands():
    early, late = (family_cost("mamba", Work(1, 1 << 14), 1, start)[0] for start in (1, (1 << 14) - 1))
    assert (early.flops, early.read, early.written) == (late.flops, late.read, late.written)
