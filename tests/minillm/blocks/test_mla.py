"""Latent attention against its definition in NumPy, and under the protocol's laws, in float64."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import QUICK

from minillm import laws
from minillm.blocks import LatentAttentionSpec, Params
from minillm.cache import StateSpec
from minillm.cache.latent import expanding_pays
from minillm.config import Config
from minillm.ops import apply_rope_ref, mla_attention_ref, rms_norm_ref
from minillm.rope import default
from minillm.span import Span

# Keys and values are built for none of the laws' spans, for those of 5 tokens or more, and for all.
SPECS = {
    "never": LatentAttentionSpec(h=3, k=4, a=2, j=5, l=4, rope=default(2, 1e2), scale=0.3),
    "from 5": LatentAttentionSpec(h=2, k=2, a=4, j=3, l=6, rope=default(4, 1e2), scale=0.7, q_rank=5),
    "always": LatentAttentionSpec(h=2, k=1, a=2, j=1, l=90, rope=default(2, 1e2), scale=1.1, q_rank=3, eps=0.1),
}
D = 12


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=SPECS)
def block(request):
    rng = np.random.default_rng(0)

    def get(name, layer, *shapes, init):
        shape = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        return jnp.asarray(init(rng, shape) + rng.normal(size=shape) / 4, "float64")

    config = Config("toy", d=D, v=1, context=64, layers=(), tied=True)
    return SPECS[request.param].build(Params(get, config, 0))


def activations(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(size=(*shape, D))


def defined(block, x: np.ndarray) -> np.ndarray:
    """The block from the definitions of its parts; x [b t d]."""
    s, (b, t, _) = block.spec, x.shape
    pos, freqs = np.tile(np.arange(t), (b, 1)), np.asarray(s.rope.freqs)
    y = rms_norm_ref(x, np.asarray(block.norm.weight), block.norm.eps)
    q = rms_norm_ref(y @ block.q_a.dense(), np.asarray(block.q_a_norm.weight), s.eps) if s.q_rank else y
    q = (q @ np.asarray(block.q.dense())).reshape(b, t, s.h, s.k + s.a)
    latent, k_rope = np.split(y @ np.asarray(block.kv_a.dense()), [s.l], axis=-1)
    latent = rms_norm_ref(latent, np.asarray(block.kv_a_norm.weight), s.eps)
    q_rope, k_rope = apply_rope_ref(q[..., s.k :], pos, freqs), apply_rope_ref(k_rope[:, :, None], pos, freqs)
    w_uk, w_uv = np.split(np.asarray(block.kv_b.dense()).T, [s.h * s.k])
    maps = w_uk.reshape(s.h, s.k, s.l), w_uv.reshape(s.h, s.j, s.l)
    y = mla_attention_ref(q[..., : s.k], q_rope, latent, k_rope[:, :, 0], *maps, scale=s.scale)
    return x + np.asarray(y).reshape(b, t, -1) @ np.asarray(block.out.dense())


def test_the_specs_build_keys_and_values_as_they_say():
    chosen = {name: [expanding_pays(t, s.k, s.a, s.j, s.l) for t in (1, 4, 5, 16)] for name, s in SPECS.items()}
    assert chosen == {
        "never": [False] * 4,
        "from 5": [False, False, True, True],
        "always": [False, True, True, True],
    }


@pytest.mark.parametrize("t", [1, 7])
def test_it_is_what_it_is_defined_as(block, t):
    x = activations(np.random.default_rng(1), (2, t))
    at = Span.chain(np.zeros(2, np.int32), np.full(2, t, np.int32), t)
    y = jax.jit(lambda x: block(x, None, at)[0], compiler_options=QUICK)(x)
    np.testing.assert_allclose(y, defined(block, x), atol=1e-12)


@pytest.mark.usefixtures("quick_programs")
@pytest.mark.parametrize("kind", ["contiguous", pytest.param("paged", marks=pytest.mark.slow)])
def test_every_schedule_gives_what_reading_whole_sequences_gives(block, kind):
    spec = replace(laws.SPEC, dtype="float64", kind=kind)
    laws.check_schedules(block, activations, spec=spec, tolerance=1e-12, examples=2, all_slots=kind == "paged")
    laws.check_donation(block, activations, spec=spec)
    laws.check_causality(block, activations, spec=spec)


@pytest.mark.parametrize("spec", [StateSpec(2, 7), StateSpec(2, 7, kind="paged", page_size=2, n_pages=7)])
def test_a_token_leaves_a_latent_and_one_rotated_key_and_nothing_else(block, spec):
    numbers = sum(leaf.size for leaf in jax.tree.leaves(block.init_state(spec)))
    assert numbers == 2 * 7 * (block.spec.l + block.spec.a)
