"""The gated delta net against its definitions in NumPy, and under the protocol's laws, in float64."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import QUICK

from minillm import laws
from minillm.blocks import Params
from minillm.blocks.gated_delta import EPS, GatedDeltaSpec
from minillm.config import Config
from minillm.ops import causal_conv1d_ref, gated_delta_ref, rms_norm_ref, silu_ref, softplus_ref
from minillm.span import Span

SPECS = [GatedDeltaSpec(h=4, g=2, k=3, j=5), GatedDeltaSpec(h=2, g=2, k=4, j=4, w=2)]
D = 12


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def block(spec: GatedDeltaSpec, seed: int = 0):
    rng = np.random.default_rng(seed)

    def get(name, layer, *shapes, init):
        shape = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        return jnp.asarray(init(rng, shape) + rng.normal(size=shape) / 4, "float64")

    return spec.build(Params(get, Config("toy", d=D, v=1, context=64, layers=(), tied=True), 0))


def activations(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(size=(*shape, D))


def defined(net, x: np.ndarray) -> np.ndarray:
    """The block from the definitions of its parts; x [b t d]."""
    s = net.spec
    b, t, _ = x.shape
    normed = rms_norm_ref(x, np.asarray(net.norm.weight), net.norm.eps)
    q, k, v, z = np.split(
        normed @ np.asarray(net.qkvz.dense()), np.cumsum([s.g * s.k, s.g * s.k, s.h * s.j]), axis=-1
    )
    beta, a = np.split(normed @ np.asarray(net.ba.dense()), 2, axis=-1)
    mixed, _ = causal_conv1d_ref(np.concatenate([q, k, v], axis=-1), np.asarray(net.conv).T)
    q, k, v = np.split(silu_ref(mixed), np.cumsum([s.g * s.k, s.g * s.k]), axis=-1)
    q, k = (x.reshape(b, t, s.g, s.k)[:, :, np.arange(s.h) // (s.h // s.g)] for x in (q, k))
    q, k = (x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True) + EPS) for x in (q, k))
    log_decay = -np.exp(np.asarray(net.A_log)) * softplus_ref(a + np.asarray(net.dt_bias))
    y, _ = gated_delta_ref(q, k, v.reshape(b, t, s.h, s.j), log_decay, 1 / (1 + np.exp(-beta)))
    y = rms_norm_ref(y, np.asarray(net.y_norm.weight), net.y_norm.eps).reshape(b, t, -1) * silu_ref(z)
    return x + y @ np.asarray(net.out.dense())


@pytest.mark.parametrize("spec", SPECS)
def test_it_is_what_its_definition_says(spec):
    net, x = block(spec), activations(np.random.default_rng(1), (2, 70))
    at = Span.chain(np.zeros(2, np.int32), np.full(2, 70, np.int32), 70)
    y, _ = jax.jit(lambda x: net(x, None, at), compiler_options=QUICK)(x)
    np.testing.assert_allclose(y, defined(net, x), rtol=0, atol=1e-12 * np.abs(x).max())


@pytest.mark.usefixtures("quick_programs")
@pytest.mark.parametrize("spec", SPECS)
def test_every_schedule_gives_what_reading_whole_sequences_gives(spec):
    state = replace(laws.SPEC, dtype="float64")
    laws.check_schedules(block(spec), activations, spec=state, tolerance=1e-11, examples=2)


@pytest.mark.usefixtures("quick_programs")
def test_later_tokens_change_nothing_and_memory_is_updated_in_place():
    laws.check_causality(block(SPECS[0]), activations)
    laws.check_donation(block(SPECS[0]), activations, spec=replace(laws.SPEC, dtype="float64"))


def test_it_keeps_its_memory_in_float32_for_activations_of_bfloat16():
    net, x = block(SPECS[0]), activations(np.random.default_rng(1), (3, 5))
    at = Span.chain(np.zeros(3, np.int32), np.full(3, 5, np.int32), 5)
    net = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), net)
    y, pending = jax.eval_shape(net, jnp.asarray(x, "bfloat16"), net.init_state(laws.SPEC), at)
    assert y.dtype == "bfloat16"
    kept = jax.eval_shape(net.commit, pending, at, np.zeros((3, 1), np.int32), np.ones(3, np.int32))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(kept)} == {"float32"}
