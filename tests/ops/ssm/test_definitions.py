"""The definitions against what can be worked out by other means."""

from dataclasses import replace

import numpy as np
import pytest
from agreement import all_draws, assert_same, call
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.ops.ssm.cases import OPS
from minillm.ops.ssm.conv import causal_conv1d_ref
from minillm.ops.ssm.ref import gated_delta_ref, selective_scan_ref, ssd_ref


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def test_the_convolution_is_numpys_in_every_channel():
    x, weight, bias = normal(2, 9, 3), normal(3, 4), normal(3)
    y, _ = causal_conv1d_ref(x, weight, bias)
    for b, i in np.ndindex(2, 3):
        assert np.allclose(y[b, :, i], bias[i] + np.convolve(x[b, :, i], weight[i, ::-1])[:9], rtol=0, atol=1e-14)


def test_the_last_tap_weighs_the_newest_input():
    y, state = causal_conv1d_ref(np.array([[[5.0], [7.0]]]), np.array([[1.0, 10.0, 100.0]]))
    assert y.ravel().tolist() == [500, 750]
    assert state.ravel().tolist() == [5, 7]


def test_one_token_of_the_selective_scan_by_hand():
    x, dt, A, B, C, D = (np.full(shape, value) for shape, value in zip(
        [(1, 1, 1), (1, 1, 1), (1, 1), (1, 1, 1), (1, 1, 1), (1,)], [2.0, 0.5, -1.0, 3.0, 5.0, 7.0], strict=True
    ))  # fmt: skip
    y, state = selective_scan_ref(x, dt, A, B, C, D, state=np.full((1, 1, 1), 11.0))
    h = np.exp(-0.5) * 11 + 0.5 * 3 * 2
    assert state.item() == pytest.approx(h, rel=1e-15)
    assert y.item() == pytest.approx(5 * h + 7 * 2, rel=1e-15)
    _, state = selective_scan_ref(x, dt, A, B, C, dt_bias=np.full(1, 0.25), softplus=True)
    assert state.item() == pytest.approx(np.log(1 + np.exp(0.75)) * 3 * 2, rel=1e-15)


def test_without_decay_the_scan_is_a_cumulative_sum():
    x, one = normal(2, 8, 3), np.ones((2, 8, 1))
    y, _ = selective_scan_ref(x, np.ones((2, 8, 3)), np.zeros((3, 1)), one, one)
    assert np.allclose(y, np.cumsum(x, axis=1), rtol=0, atol=1e-14)


def test_ssd_is_the_selective_scan_with_one_decay_a_head():
    """Head h, channel k becomes channel h * k; with one group, so that B and C are shared as in Mamba-1."""
    b, t, h, k, n = 2, 6, 3, 4, 5
    x, dt, A, B, C, D, state = (
        normal(*s) for s in [(b, t, h, k), (b, t, h), (h,), (b, t, n), (b, t, n), (h,), (b, h, k, n)]
    )
    y, last = ssd_ref(x, dt, A, B[:, :, None], C[:, :, None], D, state=state, softplus=True)
    rates = np.broadcast_to(np.repeat(A, k)[:, None], (h * k, n))
    flat = x.reshape(b, t, h * k), np.repeat(dt, k, axis=2), rates, B, C, np.repeat(D, k)
    y_flat, last_flat = selective_scan_ref(*flat, state=state.reshape(b, h * k, n), softplus=True)
    assert np.allclose(y.reshape(y_flat.shape), y_flat, rtol=1e-13)
    assert np.allclose(last.reshape(last_flat.shape), last_flat, rtol=1e-13)


def test_a_head_reads_its_own_group():
    b, t, h, g, k, n = 1, 3, 4, 2, 2, 3
    x, dt, A, B, C = (normal(*shape) for shape in [(b, t, h, k), (b, t, h), (h,), (b, t, g, n), (b, t, g, n)])
    y, _ = ssd_ref(x, dt, A, B, C)
    for head, group in enumerate([0, 0, 1, 1]):
        one, at = slice(head, head + 1), slice(group, group + 1)
        alone, _ = ssd_ref(x[:, :, one], dt[:, :, one], A[one], B[:, :, at], C[:, :, at])
        assert np.array_equal(y[:, :, one], alone)


def test_with_keys_at_right_angles_the_delta_rule_is_ssd():
    """Nothing is ever overwritten, so beta v is simply added."""
    b, t, h, k, j = 2, 5, 2, 6, 3
    keys = np.broadcast_to(np.eye(k)[:t, None], (b, t, h, k))
    q, v, beta, decay = normal(b, t, h, k), normal(b, t, h, j), np.abs(normal(b, t, h)), np.abs(normal(b, t, h))
    y, state = gated_delta_ref(q, keys, v, -decay, beta, scale=1.0)
    added = beta[..., None] * v / decay[..., None]
    same, transposed = ssd_ref(added, decay, -np.ones(h), keys, q)
    assert np.allclose(y, same, rtol=1e-12)
    assert np.allclose(state, np.swapaxes(transposed, 2, 3), rtol=1e-12)


def test_a_key_written_twice_holds_the_second_value_and_beta_mixes_the_two():
    key, v = np.eye(2)[None, [0, 0], None], np.array([8.0, 4.0])[None, :, None, None]
    for beta, held in ((1.0, 4.0), (0.5, 4.0), (0.25, 2.5)):
        y, state = gated_delta_ref(key, key, v, np.zeros((1, 2, 1)), np.full((1, 2, 1), beta))
        assert state.ravel().tolist() == [held, 0]
        assert y[0, 1].item() == pytest.approx(held / np.sqrt(2), rel=1e-15)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
@settings(max_examples=25)
@given(data=st.data())
def test_laws_hold_for_the_definition_at_any_size_on_any_inputs(op, data):
    case = data.draw(st.sampled_from(op.cases))
    case = replace(
        case, sizes={letter: data.draw(st.integers(1, min(size, 5))) for letter, size in case.sizes.items()}
    )
    seed = data.draw(st.integers(0, 2**32 - 1))

    def definition(**given):
        arrays = {name: x for name, x in given.items() if isinstance(x, np.ndarray)}
        return call(op.ref, op, arrays, {name: x for name, x in given.items() if name not in arrays})

    for _, inputs in all_draws(op):
        arrays = inputs(case, np.random.default_rng(seed))
        for law in op.laws:
            sides = law.sides(definition, arrays, case.options, np.random.default_rng(seed))
            for one, other in zip(*sides or ((), ()), strict=True):
                assert_same(law.name, one, other, 0 if law.exact else 1e-12)
