"""Both Mambas against their definitions in NumPy, and under the protocol's laws, in float64."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import QUICK

from minillm import laws
from minillm.blocks import Mamba2Spec, MambaSpec, Params
from minillm.cache import StateSpec
from minillm.config import Config
from minillm.ops import causal_conv1d_ref, rms_norm_ref, selective_scan_ref, silu_ref, softplus_ref, ssd_ref
from minillm.span import Span

SPECS = [
    MambaSpec(i=20, n=3, rank=4),
    MambaSpec(i=20, n=4, rank=3, w=2, bias=True, conv_bias=False, norms="plain", norm_eps=0.1),
    MambaSpec(i=20, n=4, rank=3, w=5, norms="weighted", norm_eps=0.2),
    Mamba2Spec(h=4, k=3, n=5),
    Mamba2Spec(h=6, k=2, n=3, g=3, w=3, bias=True, conv_bias=False),
]
D = 12


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def block(spec, noise: float = 0.25):
    rng = np.random.default_rng(0)

    def get(name, layer, *shapes, init):
        shape = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        return jnp.asarray(init(rng, shape) + noise * rng.normal(size=shape), "float64")

    return spec.build(Params(get, Config("toy", d=D, v=1, context=64, layers=(), tied=True, eps=0.01), 0))


def activations(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(size=(*shape, D))


def times(x: np.ndarray, linear) -> np.ndarray:
    """x @ linear, with its bias if it has one."""
    bias = np.asarray(getattr(linear, "bias", 0.0))
    return x @ np.asarray(getattr(linear, "weight", linear).dense()) + bias


def convolved(x: np.ndarray, net) -> np.ndarray:
    bias = None if net.conv_bias is None else np.asarray(net.conv_bias)
    return silu_ref(causal_conv1d_ref(x, np.asarray(net.conv).T, bias)[0])


def scanned(net, x: np.ndarray) -> np.ndarray:
    """Mamba from the definitions of its parts, x normed."""
    s = net.spec
    x, z = np.split(times(x, net.x_z), 2, axis=-1)
    x = convolved(x, net)
    parts = np.split(times(x, net.dt_B_C), np.cumsum([s.rank, s.n]), axis=-1)
    if s.norms:
        weights = net.norms or [np.ones(part.shape[-1]) for part in parts]
        parts = [rms_norm_ref(part, np.asarray(w), s.norm_eps) for part, w in zip(parts, weights, strict=True)]
    dt = softplus_ref(times(parts[0], net.dt) + np.asarray(net.dt_bias))
    _, B, C = parts
    y, _ = selective_scan_ref(x, dt, -np.exp(np.asarray(net.A_log)).T, B, C, np.asarray(net.D))
    return times(y * silu_ref(z), net.out)


def dual(net, x: np.ndarray) -> np.ndarray:
    """Mamba-2 from the definitions of its parts, x normed."""
    s, (b, t, _) = net.spec, x.shape
    z, xBC, dt = np.split(times(x, net.z_xBC_dt), np.cumsum([s.i, s.i + 2 * s.g * s.n]), axis=-1)
    x, B, C = np.split(convolved(xBC, net), np.cumsum([s.i, s.g * s.n]), axis=-1)
    x, B, C = x.reshape(b, t, s.h, s.k), B.reshape(b, t, s.g, s.n), C.reshape(b, t, s.g, s.n)
    dt = softplus_ref(dt + np.asarray(net.dt_bias))
    y, _ = ssd_ref(x, dt, -np.exp(np.asarray(net.A_log)), B, C, np.asarray(net.D))
    y = (y.reshape(z.shape) * silu_ref(z)).reshape(b, t, s.g, -1)
    weights = np.asarray(net.y_norm).reshape(s.g, -1)
    y = np.stack([rms_norm_ref(y[:, :, g], weights[g], 0.01) for g in range(s.g)], axis=2)
    return times(y.reshape(z.shape), net.out)


@pytest.mark.parametrize("spec", SPECS)
def test_it_is_what_its_definition_says(spec):
    net, x = block(spec), activations(np.random.default_rng(1), (2, 70))
    at = Span.chain(np.zeros(2, np.int32), np.full(2, 70, np.int32), 70)
    y, _ = jax.jit(lambda x: net(x, None, at), compiler_options=QUICK)(x)
    normed = rms_norm_ref(x, np.asarray(net.norm.weight), 0.01)
    expected = x + (scanned if isinstance(spec, MambaSpec) else dual)(net, normed)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.usefixtures("quick_programs")
@pytest.mark.parametrize("spec", SPECS[2:4])
def test_the_laws_hold(spec):
    state = replace(laws.SPEC, dtype="float64")
    laws.check_schedules(block(spec), activations, spec=state, tolerance=1e-11, examples=2)
    laws.check_causality(block(spec), activations)
    laws.check_donation(block(spec), activations, spec=state)


@pytest.mark.parametrize("spec", SPECS[2:4])
def test_a_tree_without_a_memory_is_the_tree_read_into_an_empty_one(spec):
    net, x = block(spec), activations(np.random.default_rng(1), (1, 5))
    at = Span.tree(np.zeros(1, np.int32), np.full(1, 5, np.int32), jnp.asarray([[-1, 0, 0, 1, 2]], "int32"))
    memory = net.init_state(StateSpec(slots=1, max_len=8))
    run = jax.jit(lambda state: net(x, state, at)[0], compiler_options=QUICK)
    alone, read = run(None), run(memory)
    np.testing.assert_allclose(alone, read, rtol=0, atol=1e-6)


@pytest.mark.parametrize("spec", SPECS[2:4])
def test_it_keeps_its_memory_in_float32_for_activations_of_bfloat16(spec):
    net, x = block(spec), activations(np.random.default_rng(1), (3, 5))
    net = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), net)
    for rewind in (False, True):
        at = Span.chain(np.zeros(3, np.int32), np.full(3, 5, np.int32), 5, rewind=rewind)
        y, pending = jax.eval_shape(net, jnp.asarray(x, "bfloat16"), net.init_state(laws.SPEC), at)
        assert y.dtype == "bfloat16"
        kept = jax.eval_shape(net.commit, pending, at, np.zeros((3, 1), np.int32), np.ones(3, np.int32))
        assert {leaf.dtype.name for leaf in jax.tree.leaves(kept)} == {"float32"}


def test_fresh_weights_remember_for_tens_to_thousands_of_tokens():
    for spec in SPECS:
        net = block(spec, noise=0.0)
        dt, rate = softplus_ref(np.asarray(net.dt_bias)), np.exp(np.asarray(net.A_log))
        assert 0.000999 < dt.min() < dt.max() < 0.1001
        assert 0.999 < rate.min() < rate.max() < 16.001
    np.testing.assert_allclose(np.exp(np.asarray(block(SPECS[0], 0.0).A_log))[:, 7], [1, 2, 3], rtol=1e-6)
