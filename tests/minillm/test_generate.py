import time
from itertools import islice

import files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import QUICK

import minillm
from minillm.cache import StateSpec
from minillm.errors import UserError
from minillm.generate import Plan, advance, generate_tokens, i32
from minillm.sampling import new_sampler
from minillm.xla import Programs

pytestmark = pytest.mark.usefixtures("quick_programs")

GREEDY = new_sampler(temperature=0.0, seed=0)
filtered = jax.jit(lambda sampler, logits, history: sampler.filtered(logits, history), compiler_options=QUICK)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return minillm.load(files.write_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf"))


def test_generating_greedily_is_the_argmax_of_scoring_at_every_step(tiny):
    out = tiny.generate([5, 9, 200], max_tokens=20, temperature=0.0)
    whole = np.array([[5, 9, 200, *out.tokens]])
    assert out.tokens == list(tiny.logits(whole)[0, 2:-1].argmax(-1))


def test_200_tokens_of_a_long_prompt_compile_at_most_three_programs(monkeypatch):
    monkeypatch.setattr("minillm.generate.CHUNK", 32)
    model = minillm.init(files.CONFIG | {"vocab_size": 277}).model  # of a size that nothing is compiled for
    with Programs() as programs:
        prompt = [3 + i % 200 for i in range(70)]
        tokens = list(generate_tokens(model, Plan.of(prompt, 200, 4096), GREEDY))
    assert len(tokens) == 200
    assert 2 <= programs.count <= 3
    with Programs() as programs:
        list(generate_tokens(model, Plan.of(prompt[:65], 210, 4096), new_sampler(temperature=0.0, seed=1)))
    assert programs.count == 0, "another length of the same bucket compiled again"


def test_a_text_that_outgrows_its_memory_goes_on_as_if_it_had_been_large(tiny, monkeypatch):
    expected = list(generate_tokens(tiny.model, Plan.of([7, 8, 9], 60, 100), GREEDY))
    monkeypatch.setattr("minillm.generate.AHEAD", 4)
    monkeypatch.setattr("minillm.generate.LEAST_MEMORY", 8)
    with Programs() as programs:
        assert list(generate_tokens(tiny.model, Plan.of([7, 8, 9], 60, 100), GREEDY)) == expected
    assert programs.count <= 10  # 8, 16, 32, 63: four decode programs, three copies, a prefill


def test_a_long_prompt_read_in_chunks_is_the_prompt_read_at_once(tiny, monkeypatch):
    prompt = [3 + i * 7 % 250 for i in range(90)]
    whole = list(generate_tokens(tiny.model, Plan.of(prompt, 10, 128), GREEDY))
    monkeypatch.setattr("minillm.generate.CHUNK", 16)
    assert list(generate_tokens(tiny.model, Plan.of(prompt, 10, 128), GREEDY)) == whole


def test_the_memory_of_a_short_text_does_not_depend_on_the_models_context():
    assert Plan.of([1] * 100, 128, 8192).capacity == Plan.of([1] * 100, 128, 1 << 20).capacity == 256


def test_a_decode_step_reads_and_writes_memory_in_place(tiny):
    state = tiny.model.init_state(StateSpec(slots=1, max_len=64))
    lowered = advance.lower(tiny.model, state, None, GREEDY, i32(5)[:, None], i32(3), i32(1))
    compiled = lowered.compile()
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert compiled.memory_analysis().alias_size_in_bytes == held  # pyright: ignore[reportOptionalMemberAccess]
    assert "copy(%state" not in (compiled.as_text() or "")


def test_the_context_ends_a_text_as_length(tiny):
    out = tiny.generate([5] * 120, max_tokens=50, temperature=0.0)
    assert out.prompt_tokens + len(out.tokens) <= 128
    assert out.finish_reason in ("length", "stop")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"min_p": 2.0}, "min_p is 2.0"),
        ({"repeat_penalty": 0.0}, "repeat_penalty is 0.0"),
        ({"presence_penalty": float("inf")}, "presence_penalty is inf"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty is nan"),
        ({"seed": -5}, "seed is -5"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"stop": ("",)}, "stop string is empty"),
        ({"stop": (3,)}, "stop string is empty or no string"),
        ({"temperature": 1e-38}, "temperature is 1e-38"),
        ({"temperature": "warm"}, "temperature is 'warm'"),
        ({"top_p": 1e-40}, "top_p is 1e-40"),
        ({"top_k": 2.7}, "top_k is 2.7"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"max_tokens": 2.5}, "max_tokens is 2.5"),
    ],
)
def test_an_option_out_of_range_is_named(tiny, options, message):
    with pytest.raises(UserError, match=message):
        tiny.generate("hello", **options)


def test_prompts_that_cannot_be_continued_are_refused(tiny):
    with pytest.raises(UserError, match="prompt is empty"):
        tiny.generate("")
    with pytest.raises(UserError, match="128 tokens, but the context is 128"):
        tiny.generate([5] * 128)
    with pytest.raises(UserError, match="token id 272"):
        tiny.generate([5, 272])
    with pytest.raises(UserError, match="no token id"):
        tiny.generate([5.9, 6.2])
    with pytest.raises(UserError, match=r"expected int \[b, t\]"):
        tiny.logits([1, 2, 3])
    with pytest.raises(UserError, match="different lengths"):
        tiny.logits([[1, 2], [3]])
    with pytest.raises(UserError, match="context is 128"):
        tiny.logits([[5] * 129])


def test_the_same_seed_draws_the_same_text_and_another_seed_another(tiny):
    first, again, other = (tiny.generate("hello", max_tokens=24, temperature=1.5, seed=s) for s in (3, 3, 4))
    assert first.tokens == again.tokens
    assert first.tokens != other.tokens
    assert first.seed == 3


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.2},
        {"top_k": 3},
        {"top_p": 0.3},
        {"min_p": 0.7},
        {"repeat_penalty": 9.0},
        {"presence_penalty": 9.0},
        {"frequency_penalty": 9.0},
    ],
    ids=str,
)
def test_every_option_changes_the_distribution(tiny, change):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 20)).astype(np.float32) * 3)
    history = minillm.sampling.History(logits > 0, (logits > 1).astype(jnp.int32), i32(0))
    base, changed = (tiny.stream("hello", **options).sampler for options in ({}, change))
    assert not np.array_equal(filtered(base, logits, history), filtered(changed, logits, history))


def test_penalties_count_generated_tokens_only_where_they_say_so(tiny):
    repeated = tiny.generate([5, 6, 7] * 9, max_tokens=30, temperature=0.0, presence_penalty=1e4).tokens
    assert len(set(repeated)) == len(repeated), "a token came twice in spite of an enormous presence penalty"
    fresh = tiny.generate([5, 6, 7] * 9, max_tokens=30, temperature=0.0, repeat_penalty=1e6).tokens
    assert not {5, 6, 7} & set(fresh), "a prompt token came again in spite of an enormous repeat penalty"


def test_the_filtered_logits_are_the_definitions_in_their_stated_order(tiny):
    from minillm import ops

    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1, 50)).astype(np.float32) * 4
    counts, seen = rng.integers(0, 3, (1, 50)).astype(np.int32), rng.random((1, 50)) < 0.5
    values = {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.05, "repeat_penalty": 1.3}
    sampler = new_sampler(**values, presence_penalty=0.4, frequency_penalty=0.2, seed=0)
    history = minillm.sampling.History(jnp.asarray(seen), jnp.asarray(counts), i32(0))
    v = {name: np.array([value]) for name, value in values.items()}
    expected = ops.penalise_repetition_ref(logits, seen, v["repeat_penalty"])
    expected = ops.penalise_counts_ref(expected, counts, np.array([0.4]), np.array([0.2]))
    expected = ops.scale_temperature_ref(expected, v["temperature"])
    expected = ops.keep_min_p_ref(
        ops.keep_top_p_ref(ops.keep_top_k_ref(expected, v["top_k"]), v["top_p"]), v["min_p"]
    )
    found = np.asarray(filtered(sampler, logits, history))
    assert np.array_equal(np.isfinite(found), np.isfinite(expected))
    np.testing.assert_allclose(found[np.isfinite(found)], expected[np.isfinite(found)], rtol=1e-5)


def test_stop_strings_end_the_text_before_them_and_are_never_shown(tiny):
    plain = tiny.generate("hello", max_tokens=60, temperature=0.0)
    stop = plain.text[10:13]
    stream = tiny.stream("hello", max_tokens=60, temperature=0.0, stop=(stop, "never there"))
    pieces = list(stream)
    out = stream.completion()
    assert out.finish_reason == "stop"
    assert "".join(pieces) == out.text == plain.text[: plain.text.index(stop)]


def test_streaming_gives_the_same_text_as_generating(tiny):
    stream = tiny.stream("hello", max_tokens=40, temperature=1.0, seed=5)
    text = "".join(stream)
    assert text == stream.completion().text == tiny.generate("hello", max_tokens=40, temperature=1.0, seed=5).text
    assert text == tiny.tokenizer.decode(stream.completion().tokens)


def test_a_reader_who_stops_early_keeps_what_there_is(tiny):
    stream = tiny.stream("hello", max_tokens=40, temperature=0.0)
    pieces = list(islice(stream, 3))
    stream.close()
    out = stream.completion()
    assert out.finish_reason == "interrupted"
    assert "".join(pieces) == out.text
    assert len(out.tokens) == 3


def test_timings_have_the_keys_of_the_json(tiny):
    timings = tiny.generate("hello", max_tokens=4, temperature=0.0).timings
    assert set(timings) == {"ttft_s", "prefill_tok_s", "decode_tok_s", "compile_s"}


def test_one_stop_string_need_not_be_in_a_list(tiny):
    text = tiny.generate("hello", max_tokens=30, temperature=0.0).text
    assert (
        tiny.generate("hello", max_tokens=30, temperature=0.0, stop=text[5:7]).text == text[: text.index(text[5:7])]
    )


def test_the_readers_own_time_is_not_counted_as_decoding(tiny):
    tiny.generate("hello", max_tokens=5, temperature=0.0)
    stream = tiny.stream("hello", max_tokens=5, temperature=0.0)
    waited = 0
    for _ in stream:
        time.sleep(0.2)
        waited += 0.2
    spent = (len(stream.completion().tokens) - 1) / (stream.completion().timings["decode_tok_s"] or 1)
    assert spent < waited
