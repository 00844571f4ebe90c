"""Older tokens in 2 or 4 bits, keys by channel and values by token; what is seen of them follows from positions."""

from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from agreement import QUICK
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from toys import toy_attention

from minillm import laws
from minillm.cache import StateSpec, kivi, new_cache
from minillm.errors import UserError
from minillm.ops import attention_ref, decode_ints_ref, encode_ints_ref, pack_ref
from minillm.ops.formats.integers_ref import CodedInts
from minillm.span import Span

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
BITS, GROUP, RESIDUAL = (2, 4), 4, 6
G, H, K, J = 2, 4, 4, 12
coded, decoded = jax.jit(kivi.coded, static_argnums=(1, 2)), jax.jit(kivi.decoded, static_argnums=(1, 2, 3))


@pytest.fixture
def _small_groups(monkeypatch):
    """Groups of 4 tokens behind the newest 6 to 9, so that short texts have some."""
    monkeypatch.setattr(kivi, "GROUP", GROUP)
    monkeypatch.setattr(kivi, "RESIDUAL", RESIDUAL)


def floored(x: np.ndarray) -> np.ndarray:
    """Float32 x rounded down to bfloat16."""
    near = x.astype(ml_dtypes.bfloat16)
    return np.where(near.astype(np.float32) > x, np.nextafter(near, near.dtype.type(-np.inf)), near)


def by_hand(x: np.ndarray, group: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of x [n, m], and what they say, by the definitions of the ops."""
    groups = x.reshape(len(x), -1, group)
    least = floored(groups.min(-1))
    left = (groups - least[..., None].astype(np.float32)).reshape(x.shape)
    codes, scales, zeros = encode_ints_ref(left, f"int{bits}", group=group, affine=True)
    assert not zeros.any()
    scales = scales.astype(ml_dtypes.bfloat16)
    said = decode_ints_ref(CodedInts(codes, scales.astype(np.float32), zeros)).reshape(groups.shape)
    said = said + least[..., None].astype(np.float64)
    pairs = np.hstack([scales, least]).view(np.int8)
    return np.hstack([pack_ref(codes, bits).view(np.int8), pairs]), said.reshape(x.shape)


@pytest.mark.parametrize("bits", BITS)
@given(hnp.arrays(np.float32, (3, 16), elements=FLOATS))
def test_codes_are_those_of_the_ops_above_the_least_number(bits, x):
    x = x + np.float32(0)  # of 0 and -0 either may be the least
    found, (expected, said) = coded(x, 8, bits), by_hand(x, 8, bits)
    assert np.array_equal(found, expected)
    np.testing.assert_allclose(decoded(found, 16, 8, bits), said, rtol=2.0**-22, atol=2.0**-100)


@pytest.mark.parametrize("bits", BITS)
@given(hnp.arrays(np.float32, (3, 16), elements=FLOATS))
def test_no_number_is_further_than_half_a_step_from_what_it_was(bits, x):
    """But for what bfloat16 takes: 2^-7 of the least number from the range, 2^-9 of the scale for each step."""
    reach, top = np.ptp(x.astype(np.float64), axis=1, keepdims=True), 2**bits - 1
    reach = reach + np.abs(x.min(axis=1, keepdims=True)) * 2.0**-7
    error = np.abs(np.asarray(decoded(coded(x, 16, bits), 16, 16, bits), np.float64) - x)
    assert np.all(error <= reach * (0.5 / top + 2.0**-8) + np.abs(x) * 2.0**-22 + 2.0**-100)


def test_a_group_by_hand_and_what_is_not_a_number():
    row = np.asarray(coded(jnp.array([-1.0, 0.5, 2.0, -0.3]), 4, 2))
    assert row.tolist() == [0b01_11_10_00, *np.array([1.0, -1.0], ml_dtypes.bfloat16).view(np.int8)]
    assert np.asarray(decoded(row, 4, 4, 2)).tolist() == [-1.0, 1.0, 2.0, 0.0]
    assert np.isnan(np.asarray(decoded(coded(jnp.array([1.0, jnp.nan, 0.0, 0.0]), 4, 2), 4, 4, 2))).all()


def seen_by_hand(k: np.ndarray, v: np.ndarray, pos: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """What a query at `pos` sees of keys [t g k] and values [t g j]."""
    k, v = k[: pos + 1].copy(), v[: pos + 1].copy()
    for first in range(0, pos + 1 - RESIDUAL - GROUP + 1, GROUP):
        group = slice(first, first + GROUP)
        for g in range(G):
            k[group, g] = by_hand(k[group, g].T, GROUP, bits)[1].T
            v[group, g] = by_hand(v[group, g], GROUP, bits)[1]
    return k, v


@partial(jax.jit, compiler_options=QUICK)
def advance(memory, q, k, v, at, keep, n_keep):
    y, memory = memory.append(k, v, at).attend(q, at)
    return y, memory.commit(at, keep, n_keep)


@pytest.mark.usefixtures("_small_groups", "quick_programs")
@pytest.mark.parametrize(("bits", "split"), [(2, [1] * 30), (4, [5, 20, 5])])
def test_older_tokens_are_coded_in_whole_groups_however_many_came_at_once(bits, split):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(30, *shape)).astype(np.float32) for shape in ((H, K), (G, K), (G, J)))
    k[:, :, 1] += 50  # an outlier channel, far from 0
    memory, found, start = laws.poisoned(new_cache(StateSpec(1, 30, "kivi", bits=bits), G, K, j=J)), [], 0
    for n in split:
        at = Span.chain(np.array([start], np.int32), np.array([n], np.int32), n)
        span = (x[None, start : start + n] for x in (q, k, v))
        y, memory = advance(memory, *span, at, np.arange(n, dtype=np.int32)[None], np.array([n], np.int32))
        found, start = [*found, *np.asarray(y)[0]], start + n
    for pos in range(30):
        keys, values = seen_by_hand(k, v, pos, bits)
        expected = attention_ref(q[None, pos : pos + 1], keys[None], values[None])
        np.testing.assert_allclose(found[pos][None, None], expected, atol=2e-5)


@pytest.mark.usefixtures("_small_groups", "quick_programs")
@pytest.mark.parametrize("bits", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_laws_hold_in_few_bits(bits):
    with jax.enable_x64(True):  # so that no sum's rounding can turn a code into its neighbour
        spec = StateSpec(3, 26, "kivi", "float64", bits=bits)
        toy = toy_attention(np.random.default_rng(0))

        def inputs(rng, shape):
            return rng.normal(size=(*shape, 16))

        laws.check_schedules(toy, inputs, spec=spec, tolerance=1e-6, examples=2, steps=24, all_slots=False)
        laws.check_donation(toy, inputs, spec=spec)


def test_a_draft_tree_that_reaches_behind_the_newest_tokens_is_refused():
    memory, t = new_cache(StateSpec(1, 64, "kivi", bits=2), G, K), kivi.RESIDUAL + 1
    at = Span.tree(np.zeros(1, np.int32), np.full(1, t, np.int32), np.arange(-1, t - 1, dtype=np.int32)[None])
    x = jnp.zeros((1, t, G, K))
    with pytest.raises(ValueError, match="a draft tree of 33 tokens, expected 32 at most"):
        memory.append(x, x, at)


@pytest.mark.parametrize("spec", [{"bits": 3}, {"bits": 0}, {"bits": 2, "dtype": "int8"}])
def test_what_is_no_such_memory_is_refused(spec):
    with pytest.raises(ValueError, match=r"bits is \d, expected 2 or 4|dtype is int8, which a kivi memory cannot"):
        StateSpec(1, 64, "kivi", **spec)


def test_heads_whose_codes_fill_no_bytes_are_refused():
    with pytest.raises(UserError, match="kivi2 packs 4 codes into a byte, but the heads' values have 6 channels"):
        new_cache(StateSpec(1, 64, "kivi", bits=2), G, 6)
