"""Ring attention and memory dealt out over eight pretend devices; test_on_eight_devices.py runs this."""

import re
from collections import Counter
from functools import partial

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import QUICK, as_tuple, assert_same
from jax.sharding import PartitionSpec as P

import minillm
from minillm import generate, laws
from minillm.cache import StateSpec, rows
from minillm.errors import UserError
from minillm.generate import Plan, advance, generate_tokens
from minillm.ops import attention_ref, merge_across, naive_attention, ring_attention
from minillm.ops.attention.cases import ATTENTION
from minillm.parallel import new_mesh
from minillm.sampling import new_sampler
from minillm.span import Span

CASES = {case.name: case for case in ATTENTION.cases}
TRIED = """
    decode one query
    window on both sides, multi-query
    packed sequences
    everything at once
""".strip().split("\n")


PIECES = P(None, "seq")


def on_ring(function, into, out=PIECES):
    """A function of pieces as one of whole arrays."""
    return jax.shard_map(function, mesh=new_mesh("seq=8"), in_specs=into, out_specs=out)


def filled(x, axis: int, fill: int = 0):
    """x with so many rows more that eight devices have equally many."""
    ends = [(0, 0)] * x.ndim
    ends[axis] = (0, -x.shape[axis] % 8)
    return jnp.pad(x, ends, constant_values=fill)


def ring(q, k, v, *, q_pos=None, k_pos=None, mask=None, q_segment=None, k_segment=None, options, **everywhere):
    """`attention_ref` by a ring of eight devices, some of which may hold padding alone."""
    (b, t), s = q.shape[:2], k.shape[1]
    q_pos = jnp.broadcast_to(jnp.arange(s - t, s, dtype=jnp.int32), (b, t)) if q_pos is None else q_pos
    k_pos = jnp.broadcast_to(jnp.arange(s, dtype=jnp.int32), (b, s)) if k_pos is None else k_pos
    pieces = {"q": q, "k": k, "v": v, "q_segment": q_segment, "k_segment": k_segment}
    pieces = {name: filled(x, 1) for name, x in pieces.items() if x is not None}
    pieces |= {"q_pos": filled(q_pos, 1, -1), "k_pos": filled(k_pos, 1, -1)}
    pieces |= {} if mask is None else {"mask": filled(filled(mask, 1), 2)}

    def attend(pieces, everywhere):
        return ring_attention(axis="seq", **pieces, **everywhere, **options)

    y = on_ring(attend, (PIECES, P()))(pieces, everywhere)
    return jax.tree.map(lambda x: x[:, :t], y)


def test_a_ring_of_devices_is_the_definition_on_ordinary_and_ragged_and_masked_texts():
    cases = [CASES[name.strip()] for name in TRIED]
    inputs = [ATTENTION.draw(case, np.random.default_rng(0)) for case in cases]
    with jax.enable_x64(True):
        all_of_them = [partial(ring, options=case.options) for case in cases]
        program = jax.jit(lambda xs: [f(**x) for f, x in zip(all_of_them, xs, strict=True)], compiler_options=QUICK)
        for case, x, found in zip(cases, inputs, program(inputs), strict=True):
            ideals = as_tuple(attention_ref(**x, **case.options))
            for y, ideal in zip(as_tuple(found), ideals, strict=True):
                assert_same(case.name, y, ideal, 1e-12)


@pytest.fixture(scope="module")
def normal():
    """q [1 8 4 4], k and v [1 16 2 4], in float32."""
    rng = np.random.default_rng(0)
    return [rng.normal(size=(1, n, heads, 4)).astype(np.float32) for n, heads in ((8, 4), (16, 2), (16, 2))]


def test_positions_left_out_are_consecutive(normal):
    around = jax.jit(on_ring(partial(ring_attention, axis="seq", window=9), PIECES), compiler_options=QUICK)
    assert_same("y", around(*normal), attention_ref(*normal, window=9), 1e-5)


def test_keys_values_and_positions_are_sent_once_less_often_than_there_are_devices(normal):
    traced = jax.make_jaxpr(on_ring(partial(ring_attention, axis="seq"), PIECES))(*normal)
    assert str(traced).count("ppermute[") == 3 * 7


def test_results_merged_across_devices_are_one_attention_even_where_a_device_saw_nothing(normal):
    q, k, v = normal
    q_pos, k_pos = np.full((1, 8), 7, np.int32), np.arange(16, dtype=np.int32)[None]  # four devices see nothing

    def own(q, k, v, q_pos, k_pos):
        y, lse = naive_attention(q, k, v, q_pos=q_pos, k_pos=k_pos, return_lse=True)
        return merge_across(y, lse, "seq")

    into = (P(), PIECES, PIECES, P(), PIECES)
    found = jax.jit(on_ring(own, into, P()), compiler_options=QUICK)(q, k, v, q_pos, k_pos)
    ideal = attention_ref(q, k, v, q_pos=q_pos, k_pos=k_pos, return_lse=True)
    for y, expected in zip(found, ideal, strict=True):
        assert_same("merged", y, expected, 1e-6)


def test_a_mask_of_this_devices_keys_alone_is_refused(normal):
    def masked(q, k, v):
        return ring_attention(q, k, v, "seq", mask=jnp.ones((1, 1, 2), bool))

    with pytest.raises(ValueError, match=re.escape("mask has 2 columns, expected 8 devices * s = 2 keys")):
        jax.eval_shape(on_ring(masked, PIECES), *normal)


LLAMA = families.FAMILIES["llama"] | {"num_hidden_layers": 1}


@pytest.fixture(scope="module")
def llamas():
    """A Llama over `seq`, and the same on one device."""
    return minillm.init(LLAMA, mesh=new_mesh("seq=2")), minillm.init(LLAMA)


def tokens(rng, shape):
    return rng.integers(0, families.V, shape).astype(np.int32)


@pytest.mark.usefixtures("quick_programs")
def test_a_model_over_seq_obeys_the_laws_of_one_that_is_not(llamas):
    spec = StateSpec(slots=2, max_len=16)
    laws.check_schedules(llamas[0].model, tokens, examples=2, steps=4, spec=spec, all_slots=False)


@pytest.mark.usefixtures("quick_programs")
def test_a_text_outgrows_memory_that_is_dealt_out_as_any_other(llamas, monkeypatch):
    def said(lm, plan):
        return list(generate_tokens(lm.model, plan, new_sampler(temperature=0.0)))

    prompt, n, most = [7, 1, 9, 30, 5], 14, 64
    enough = Plan.of(prompt, n, most)
    monkeypatch.setattr(generate, "LEAST_MEMORY", 8)
    monkeypatch.setattr(generate, "AHEAD", 4)
    plan = Plan.of(prompt, n, most)
    assert plan.capacity == 16 < len(prompt) + n <= enough.capacity
    assert said(llamas[0], plan) == said(llamas[1], enough)


@pytest.mark.usefixtures("quick_programs")
def test_scores_of_whole_texts_go_round(llamas):
    texts = tokens(np.random.default_rng(0), (2, 21))
    many, one = (lm.logits(texts) for lm in llamas)
    assert_same("logits", many, one, 1e-5)


@pytest.mark.usefixtures("quick_programs")
def test_memory_is_read_by_blocks_also_where_texts_on_other_devices_are_longer(monkeypatch):
    """Each block goes round once: devices that saw fewer of them would leave the others waiting for ever."""
    for name in ("AT_ONCE", "FEWEST", "BLOCK"):
        monkeypatch.setattr(rows, name, 8)
    spans = [(8, [8, 8]), (8, [0, 8]), (8, [0, 8]), (8, [0, 8]), (8, [8, 8]), (1, [1, 1])]

    def read(model):
        state, start, found = model.init_state(StateSpec(slots=2, max_len=64)), np.zeros(2, np.int32), []
        rng = np.random.default_rng(1)
        for t, n in spans:
            n, keep = np.array(n, np.int32), np.broadcast_to(np.arange(t, dtype=np.int32), (2, t))
            y, state = laws.advance(model, tokens(rng, (2, t)), state, Span.chain(start, n, t), keep, n)
            found.append(np.where((np.arange(t) < n[:, None])[:, :, None], y, 0))
            start = start + n
        return np.concatenate(found, axis=1)

    many, one = (read(minillm.init(LLAMA, mesh=mesh).model) for mesh in (new_mesh("data=2,seq=2"), None))
    assert_same("logits", many, one, 1e-5)


def test_each_device_reads_its_share_of_a_long_span_and_short_ones_send_only_results():
    model = minillm.init(LLAMA, mesh=new_mesh("seq=8")).model
    number, state = jax.ShapeDtypeStruct((1,), np.int32), model.state_shapes(StateSpec(slots=1, max_len=64))

    def program(t: int):
        span = jax.ShapeDtypeStruct((1, t), np.int32)
        return advance.lower(model, state, None, new_sampler(temperature=0.0), span, number, number)

    sent = [Counter(re.findall(r"collective_permute|all_reduce", program(t).as_text())) for t in (64, 1)]
    # In the text of a layer, which is there once: keys, values and positions seven times; or a peak and two sums.
    assert sent == [{"collective_permute": 3 * 7}, {"all_reduce": 3}]
    assert f"tensor<1x8x{families.D}xf32>" in program(64).as_text()  # activations of eight of the 64 tokens


@pytest.mark.parametrize("family", ["mamba", "mamba2", "jamba", "qwen3_next", "deepseek_v3"])
def test_what_cannot_be_dealt_out_is_refused_by_name(family):
    with pytest.raises(
        UserError, match=r"an axis seq, which cannot divide the tokens of a layer of \w+, as layer 0"
    ):
        minillm.init(families.FAMILIES[family], mesh=new_mesh("seq=2"))


@pytest.mark.parametrize("kind", ["int8", "kivi4", "sinks:20", "h2o:20"])
def test_memory_that_cannot_be_dealt_out_is_refused_by_name(llamas, kind):
    with pytest.raises(
        UserError, match=rf"an axis seq, which cannot divide a memory of kind {kind.split(':')[0][:4]}"
    ):
        llamas[0].generate([1, 2, 3], cache=kind, max_tokens=2)
