"""Watching changes nothing, and what is told is what the blocks really used."""

import re
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from agreement import QUICK
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from traces import Parrot, array_of, quick_programs, unpacked

import minillm
from minillm import generate
from minillm.blocks import MLP, Attention, GatedDeltaNet, LatentAttention, Mamba2, MoE
from minillm.errors import UserError
from minillm.lm import LM
from minillm.model import Model
from minillm.ops import attention_ref
from minillm.quant import Dense
from minillm.sampling import new_sampler
from minillm.texts import evaluation
from minillm.trace import page_of, rounding_errors, stream_errors, watch
from minillm.trace.page import decoded, encoded
from minillm.trace.record import MOST_TOKENS
from minillm.trace.watched import watched
from minillm.trace.work import LINES, PACKAGE, SHAPES, at_the_ends, bytes_moved, code_of, operations

some_time = partial(pytest.param, marks=pytest.mark.slow)
ATTENTION = "llama", "gpt_oss", some_time("gemma2"), some_time("mistral")
RECURRENCE = "jamba", some_time("mamba2"), some_time("qwen3_next")
GREEDY = new_sampler(temperature=0.0)
HOSTILE = "</script><script>alert(1)</script><!-- \x00\x1b[2J\x7f\u2028\u202e {{ 7 }} \"'&"


@pytest.fixture(scope="module", autouse=True)
def _quick_programs():
    with quick_programs():
        yield


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The record of some ids through a tiny checkpoint of a family, greedy, two passes."""
    kept = {}

    def of(family: str):
        if family not in kept:
            folder = tmp_path_factory.mktemp(family)
            tiny.unpacked(f"{family}_0", folder)
            lm = minillm.load(folder, context=tiny.context(family, 0))
            ids = np.random.default_rng(0).integers(0, lm.config.v, 21).tolist()
            with jax.numpy_dtype_promotion("strict"):
                kept[family] = watch(lm, ids, GREEDY, 2)
        return kept[family]

    return of


@pytest.fixture(scope="module")
def transformer():
    return minillm.load("tiny-draft")


def blocks_of(seen, *kinds) -> list[tuple[Any, Any, int]]:
    """Each pass with each of its blocks of some kinds: the pass, the block, its place."""
    blocks = seen.lm.model.blocks
    found = [(one, block, i) for one in seen.passes for i, block in enumerate(blocks) if isinstance(block, kinds)]
    assert found
    return found


def assert_near(found, expected, relative=1e-5):
    """As float32 sums of another order are, of the largest number."""
    error = np.max(np.abs(np.asarray(found, np.float64) - expected)) / np.max(np.abs(expected))
    assert error <= relative, error


@pytest.mark.parametrize("family", tiny.quick("jamba"))
def test_watching_changes_no_logit_and_no_memory(family, tmp_path):
    tiny.unpacked(f"{family}_0", tmp_path)
    lm = minillm.load(tmp_path, context=tiny.context(family, 0))
    tokens = np.random.default_rng(1).integers(0, lm.config.v, (1, 16)).astype(np.int32)

    @partial(jax.jit, compiler_options=QUICK)
    def run(model: Model, tokens):
        from minillm.cache import StateSpec
        from minillm.span import Span

        at = Span.chain(jnp.zeros(1, jnp.int32), jnp.full(1, 13, jnp.int32), 16)
        logits, pending = model(tokens, model.init_state(StateSpec(1, 32)), at)
        return logits[:, :13], model.commit(pending, at, jnp.arange(16, dtype=jnp.int32)[None], at.n)

    logits, state = run(lm.model, tokens)
    seen_logits, told = run(watched(lm.model), tokens)
    assert_near(seen_logits, np.asarray(logits), 1e-6)
    for mine, other in zip(jax.tree.leaves(state), jax.tree.leaves([one.memory for one in told]), strict=True):
        assert_near(other, np.asarray(mine), 1e-5)


def test_a_model_that_was_watched_runs_the_program_that_it_ran(transformer):
    model, plan = transformer.model, generate.Plan.of([5, 6, 7], 3, transformer.config.context)

    def program() -> str:
        tokens, n = generate.padded(plan.prompt)
        arguments = tokens, generate.i32(0), generate.i32(n)
        return generate.advance.lower(model, *plan.begin(model, GREEDY), GREEDY, *arguments).as_text()

    before = program()
    watch(transformer, plan.prompt, GREEDY, 2)
    assert program() == before


@pytest.mark.parametrize("family", ATTENTION)
def test_weights_are_those_of_the_definition_and_give_what_the_block_added(family, recorded):
    for one, block, place in blocks_of(recorded(family), Attention):
        seen, spec, end = one.blocks[place], block.spec, one.start + len(one.tokens)
        sums = seen["weights"].sum(axis=-1)
        assert np.all(sums < 1) if spec.sinks else np.allclose(sums, 1, atol=1e-5)
        if spec.window is not None and spec.window < end:  # a ring forgets keys, but every weight adds up
            continue
        keys, values = (one.state[place][name][:, :end].swapaxes(0, 1) for name in ("keys", "values"))
        weights = weights_by_definition(seen["q"], keys, spec, block.sinks)
        assert_near(seen["weights"], weights)
        y = np.einsum("gts,sgj->tgj", weights, np.repeat(values, spec.h // spec.g, axis=1))
        added = np.asarray(jnp.asarray(y.reshape(len(y), -1), jnp.float32) @ block.out)
        added = np.asarray(block.post_norm(added)) if spec.post_norm else added
        assert_near(seen["y"], seen["x"] + added)


def weights_by_definition(q, keys, spec, sinks):
    """Weights [h t s] from `attention_ref` itself: what it gives for values that are the unit vectors."""
    s, t = len(keys), len(q)
    unit = np.broadcast_to(np.eye(s)[:, None], (s, spec.g, s))
    options = {"window": spec.window, "softcap": spec.softcap, "scale": spec.scale}
    options["q_pos"] = np.arange(s - t, s)[None]
    options["sinks"] = None if sinks is None else np.asarray(sinks, np.float64)
    out = attention_ref(q[None].astype(np.float64), keys[None].astype(np.float64), unit[None], **options)
    return np.moveaxis(np.asarray(out[0] if isinstance(out, tuple) else out)[0], 1, 0)


def test_weights_over_latents_give_what_the_block_added(recorded):
    for one, block, place in blocks_of(recorded("deepseek_v2"), LatentAttention):
        seen, spec, end = one.blocks[place], block.spec, one.start + len(one.tokens)
        latents = one.state[place]["values"][0, :end].astype(np.float64)
        w_uv = np.asarray(block.kv_b.dense(), np.float64)[:, spec.h * spec.k :].reshape(spec.l, spec.h, spec.j)
        y = np.einsum("hts,sl,lhj->thj", seen["weights"], latents, w_uv)
        assert_near(seen["y"], seen["x"] + y.reshape(len(y), -1) @ np.asarray(block.out.dense()))
        assert np.allclose(seen["weights"].sum(axis=-1), 1, atol=1e-5)


def test_the_routes_are_the_experts_whose_work_was_added(recorded):
    for one, block, place in blocks_of(recorded("olmoe"), MoE):
        seen = one.blocks[place]
        up, down = (np.asarray(part.dense(), np.float64) for part in (block.up, block.down))
        normed, mixed = np.asarray(block.norm(jnp.asarray(seen["x"])), np.float64), np.zeros_like(seen["x"])
        for i, token in enumerate(normed):
            for expert, share in zip(seen["chosen"][i], seen["share"][i], strict=True):
                gate, inner = np.split(token @ up[expert], 2)
                mixed[i] += share * ((gate / (1 + np.exp(-gate)) * inner) @ down[expert])
        assert_near(seen["y"], seen["x"] + mixed)


def test_what_a_feed_forward_layer_has_inside_gives_what_it_added(recorded):
    for one, block, place in blocks_of(recorded("llama"), MLP):
        seen = one.blocks[place]
        assert_near(seen["y"], seen["x"] + seen["inside"] @ np.asarray(block.down.dense()))


@pytest.mark.parametrize("family", RECURRENCE)
def test_a_token_adds_one_outer_product_to_what_its_gate_leaves_of_the_state(family, recorded):
    seen = recorded(family)
    first, second = seen.passes
    found = [i for i, told in enumerate(second.blocks) if "gates" in told]
    assert found
    for i in found:
        block, gates = seen.lm.model.blocks[i], second.blocks[i]["gates"]
        name = "delta" if isinstance(block, GatedDeltaNet) else "ssm"
        before, after = (one.state[i][name].astype(np.float64) for one in (first, second))
        if isinstance(block, GatedDeltaNet):
            stays = gates["decay"][0][:, None, None]
        elif isinstance(block, Mamba2):
            stays = np.exp(-np.exp(np.asarray(block.A_log)) * gates["dt"][0])[:, None, None]
            assert_near(gates["decay"][0], stays[:, 0, 0])
        else:
            stays = np.exp(-np.exp(np.asarray(block.A_log)) * gates["dt"][0])
        written = after - stays * before
        for one in written if written.ndim == 3 else [written]:
            largest, next_one, *_ = np.linalg.svd(one, compute_uv=False)
            assert next_one <= 1e-5 * max(largest, np.abs(before).max())


@pytest.mark.parametrize("family", ["llama", "jamba"])
def test_the_last_row_of_the_lens_is_the_models_own_output(family, recorded):
    seen = recorded(family)
    logits = seen.lm.logits([seen.text])[0]
    for one in seen.passes:
        assert_near(one.lens[-1], logits[one.start + one.n_kept - 1])
        assert one.new == [int(np.argmax(one.lens[-1]))]
    assert len(seen.passes[0].lens) == len(seen.lm.model.blocks) + 1


LOOKED_UP, DRAWN = "Recipe: Tomato Soup. Recipe: Tomato", {"temperature": 0.5, "top_k": 9, "seed": 3}


@pytest.fixture(scope="module")
def drafted(transformer):
    return watch(transformer, LOOKED_UP, new_sampler(**DRAWN), 12, transformer.drafter("prompt-lookup"))


def test_the_text_is_the_one_that_generate_gives(transformer, drafted):
    completion = transformer.generate(LOOKED_UP, max_tokens=12, **DRAWN)
    assert drafted.text[len(drafted.prompt) :][: len(completion.tokens)] == completion.tokens
    for one in drafted.passes:
        assert one.n_kept == (len(one.new) if one.start else len(drafted.prompt))
        assert one.drafted[: len(one.new) - 1] == one.new[:-1]
        assert np.isfinite(one.stages["top_k 9"]).sum() == 9
        assert np.isfinite(one.stages["top_k 9"][one.new[-1]])
    assert {bool(one.drafted) for one in drafted.passes[1:]} == {True, False}


def test_after_a_draft_that_half_holds_memory_is_that_of_the_text(recorded):
    lm, prompt = recorded("jamba").lm, recorded("jamba").prompt  # attention and Mamba
    plain = watch(lm, prompt, GREEDY, 7)
    drafted = watch(lm, prompt, GREEDY, 7, Parrot(plain.text))
    assert drafted.text == plain.text
    assert any(1 < one.n_kept < len(one.tokens) for one in drafted.passes)
    last, end = drafted.passes[-1], len(plain.text) - 1
    for mine, other in zip(last.state, plain.passes[-1].state, strict=True):
        for name in mine:
            rows = slice(end) if name in ("keys", "values") else slice(None)
            assert_near(mine[name][:, rows], other[name][:, rows], 1e-4)


def test_memory_in_pages_is_the_same_memory(transformer, drafted):
    paged = watch(transformer, LOOKED_UP, new_sampler(**DRAWN), 12, transformer.drafter("prompt-lookup"), 8)
    assert paged.text == drafted.text
    for mine, other in zip(paged.passes, drafted.passes, strict=True):
        end = mine.start + len(mine.tokens)
        assert mine.pages[: -(-end // 8)] == list(range(-(-end // 8)))
        for a, b in zip(mine.state, other.state, strict=True):
            for name in a:
                assert_near(a[name][:, :end], b[name][:, :end])
        for a, b in zip(mine.blocks, other.blocks, strict=True):
            assert_near(a["y"], b["y"])
    known, _ = unpacked(page_of(paged, "x"))
    assert [one["pages"] for one in known["passes"]] == [one.pages for one in paged.passes]
    assert known["page_size"] * known["n_pages"] >= len(paged.text)


@pytest.mark.parametrize("size", [-1, 129])
def test_a_page_that_is_no_page_is_refused(size, transformer):
    with pytest.raises(UserError, match=f"page_size is {size}"):
        watch(transformer, [5], GREEDY, 1, page_size=size)


def test_a_prompt_that_a_page_cannot_show_is_refused(transformer):
    with pytest.raises(UserError, match="257 tokens, expected at most 256"):
        watch(transformer, [5] * 257, GREEDY, 1)


numbers = arrays(np.float64, st.sampled_from([(1,), (7,), (3, 5)]), elements=st.floats(-1e3, 1e3, width=32))


@given(numbers)
def test_codes_are_as_near_as_the_page_says(array):
    codes, largest, signed = encoded(array)
    levels = 127 if signed else 255
    error = np.abs(decoded(codes, largest, signed) - array)
    assert np.all(error <= np.sqrt(np.abs(array) * largest) / levels + largest / (4 * levels**2) + 1e-12)
    assert np.array_equal(
        np.sign(decoded(codes, largest, signed)) * np.sign(array) < 0, np.zeros(array.shape, bool)
    )


@pytest.mark.parametrize("family", ["llama", "jamba", "olmoe"])
def test_the_page_has_the_numbers_of_the_record(family, recorded):
    seen = recorded(family)
    known, codes = unpacked(page_of(seen, family))
    for shown, one in zip(known["passes"], seen.passes, strict=True):
        assert (shown["tokens"], shown["new"], shown["kept"]) == (one.tokens, one.new, one.n_kept)
        assert [row[0][0] for row in shown["lens"]] == one.lens.argmax(axis=-1).tolist()
        assert np.allclose(shown["norms"][0], np.linalg.norm(one.blocks[0]["x"], axis=-1), rtol=1e-3)
        assert np.allclose(shown["norms"][-1], np.linalg.norm(one.blocks[-1]["y"], axis=-1), rtol=1e-3)
        for inside, told, state in zip(shown["blocks"], one.blocks, one.state, strict=True):
            norms = np.linalg.norm(told["y"] - told["x"], axis=-1)
            assert np.allclose(inside["added"], norms, rtol=1e-3)
            assert ("weights" in inside, "gates" in inside) == ("weights" in told, "gates" in told)
            if "weights" in told:
                weights = told["weights"]
                assert np.all(np.abs(array_of(inside["weights"], codes) - weights) <= np.sqrt(weights) / 255 + 1e-5)
            if "gates" in told:
                dt, kept = told["gates"]["dt"], array_of(inside["state"], codes)[0]
                assert_near(array_of(inside["gates"]["dt"], codes), dt, 1 / 127)
                assert_near(kept, state["ssm"], 1 / 127)
            if "inside" in told:
                squares = sorted(np.square(told["inside"][one.speaks], dtype=np.float64), reverse=True)
                assert_near(array_of(inside["inside"], codes), told["inside"][one.speaks], 1 / 127)
                assert (
                    sum(squares[: inside["half"] - 1]) < sum(squares) / 2 <= sum(squares[: inside["half"]]) * 1.0001
                )
            if "chosen" in told:
                assert inside["chosen"] == told["chosen"].tolist()
                assert sum(inside["load"]) == told["chosen"].size


def test_hostile_prompts_and_names_stay_data_and_the_page_asks_for_nothing(transformer):
    html = page_of(watch(transformer, HOSTILE, GREEDY, 1), '"><img src=x onerror=alert(1)>')
    known, _ = unpacked(html)
    shown = "".join(known["names"][str(token)] for token in known["passes"][0]["tokens"][1:])
    assert shown.startswith("</script><script>alert(1)</script>")
    assert len(re.findall(r"<script", html)) == len(re.findall(r"</script", html)) == 2
    assert not re.search(r"<img|alert\(1\)</|\x1b|\x00|\u2028|\u202e", html)
    assert "&#34;&gt;&lt;img src=x onerror=alert(1)&gt;" in html
    outside = set(re.findall(r"[a-z]+://[^\"' )]+", html))
    assert outside == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert set(re.findall(r"(?:src|href)=\"([^\"]*)", html)) == {"data:,"}
    assert "default-src 'none'" in html
    assert not re.search(r"@import|url\(|fetch\(|XMLHttp|WebSocket|import\(", html)


def test_the_costs_are_those_of_the_sizes(transformer):
    seen = watch(transformer, [1, 2, 3, 4, 5], GREEDY, 2)
    for one, block, place in blocks_of(seen, Attention, MLP):
        t, end, d = len(one.tokens), one.start + len(one.tokens), transformer.config.d
        if isinstance(block, MLP):
            assert operations(block, one, place) == 2 * t * 3 * d * block.spec.f
            assert bytes_moved(block, one, place) == {
                "weights": 4 * (3 * d * block.spec.f + d),
                "read": 0,
                "written": 0,
            }
            continue
        pairs = sum(range(one.start + 1, end + 1))
        assert operations(block, one, place) == 2 * t * 4 * d * d + 4 * d * pairs
        assert bytes_moved(block, one, place) == {
            "weights": 4 * (4 * d * d + d),
            "read": 2 * 4 * d * end,
            "written": 2 * 4 * d * t,
        }


def test_the_ends_cost_what_they_read(transformer):
    seen = watch(transformer, [1, 2, 3, 1, 2], GREEDY, 4, Parrot([1, 2, 3, 1, 2, 9, 9, 9]))
    (v, d), size = transformer.model.embed.shape, 4
    assert any(one.drafted for one in seen.passes)
    for one in seen.passes:
        ends, asked = at_the_ends(transformer.model, one), len(one.tokens) if one.drafted else 1
        assert ends["embed"]["bytes"] == {"weights": size * d * len(one.tokens)}
        assert ends["head"]["bytes"] == {"weights": size * (v * d + d)}
        assert ends["head"]["flops"] == 2 * asked * d * v
        assert ends["choice"]["bytes"] == {"logits": size * asked * v}


def test_every_line_that_a_page_names_is_in_its_file():
    assert {kind for kind in LINES if kind[0].isupper()} == {block.__name__ for block in SHAPES}
    code = code_of(set(LINES))
    for places in code["lines"].values():
        for one in places.values():
            text = (PACKAGE.parent / one["file"]).read_text()
            assert text.splitlines()[one["line"] - 1].strip() == one["text"]
            assert one["text"] in code["functions"][one["function"]]["text"]


def test_one_token_reads_only_the_experts_it_goes_to(recorded):
    seen = recorded("olmoe")
    for one, block, place in blocks_of(seen, MoE):
        d, f, used = seen.lm.config.d, block.spec.f, len(np.unique(one.blocks[place]["chosen"]))
        assert bytes_moved(block, one, place)["weights"] == 4 * (used * 3 * d * f + block.spec.e * d + d)
        a_token = block.spec.top_k * 3 * d * f + block.spec.e * d
        assert operations(block, one, place) == 2 * len(one.tokens) * a_token


def test_rounding_errors_are_relative_and_found_in_their_block(transformer):
    exact, (lm, _) = transformer.model, transformer.quantize("int4-g32")
    errors = rounding_errors(exact, lm.model)
    assert set(errors) >= {"embed", "blocks[0].qkv", "blocks[1].down"}
    w, q = (np.asarray(model.blocks[1].down.dense()) for model in (exact, lm.model))
    assert np.isclose(errors["blocks[1].down"], np.sqrt(np.sum((w - q) ** 2) / np.sum(w**2)), rtol=1e-4)
    known, _ = unpacked(page_of(watch(transformer, [1, 2], GREEDY, 1), "x", errors))
    assert np.isclose(known["blocks"][1]["errors"]["down"], errors["blocks[1].down"], rtol=1e-3)
    assert list(known["errors"]) == ["embed"]


def test_rounding_shows_in_the_stream_from_the_layer_in_which_it_is(transformer):
    exact = transformer.model
    last = exact.blocks[-1]
    coarse = replace(last, down=Dense(last.down.dense() * 1.01))
    model = replace(exact, blocks=(*exact.blocks[:-1], coarse))
    lm = LM(transformer.config, transformer.tokenizer, model, weights := Future())
    weights.set_result(model)
    seen = watch(lm, [5, 6, 7, 8], GREEDY, 3)
    drift = stream_errors(seen, exact)
    assert drift.shape == (len(exact.blocks) + 1, 6)
    assert np.all(drift[:-1] <= 1e-5)
    added = np.concatenate([one.blocks[-1]["y"] - one.blocks[-1]["x"] for one in seen.passes])
    after = np.concatenate([one.blocks[-1]["y"] for one in seen.passes]) - added / 101
    assert_near(drift[-1], np.linalg.norm(added / 101, axis=-1) / np.linalg.norm(after, axis=-1), 1e-3)
    known, _ = unpacked(page_of(seen, "x", {}, drift))
    assert np.allclose(known["passes"][0]["drift"], drift[:, :4], rtol=1e-3)
    assert "drift" not in unpacked(page_of(seen, "x"))[0]["passes"][0]


@pytest.mark.slow
def test_the_longest_prompt_through_the_real_model_stays_below_ten_megabytes(smollm2):
    ids = smollm2.tokenizer.encode(" ".join(evaluation()))[:256]
    html = page_of(watch(smollm2, ids, GREEDY, MOST_TOKENS), "smollm2-135m")
    assert len(html) < 10e6
