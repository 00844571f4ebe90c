"""Watching changes nothing, and what is told is what the blocks really used."""

import base64
import json
import re
import shutil
import subprocess
import zlib
from html import unescape
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

import minillm
from minillm.blocks import MLP, Attention, GatedDeltaNet, LatentAttention, Mamba2, MoE
from minillm.errors import UserError
from minillm.model import Model
from minillm.ops import attention_ref
from minillm.sampling import new_sampler
from minillm.speculative import Tree
from minillm.texts import evaluation
from minillm.trace import page_of, rounding_errors, watch, write_page
from minillm.trace.page import decoded, encoded
from minillm.trace.record import MOST_TOKENS
from minillm.trace.watched import watched
from minillm.trace.work import bytes_moved, operations

ATTENTION = "llama", "gemma2", "gpt_oss", "mistral"
RECURRENCE = "jamba", "mamba2", "qwen3_next"
GREEDY = new_sampler(temperature=0.0)
HOSTILE = "</script><script>alert(1)</script><!-- \x00\x1b[2J\x7f\u2028\u202e {{ 7 }} \"'&"


@pytest.fixture(scope="module", autouse=True)
def _quick_programs():
    """Compile the watched programs unoptimised, three times as fast."""
    from minillm import generate, lm
    from minillm.speculative import decode
    from minillm.trace import record as module

    both: dict = {"donate_argnames": ("state", "history"), "compiler_options": QUICK}
    with pytest.MonkeyPatch.context() as patch:
        plain: dict = {"compiler_options": QUICK}
        programs = [(module, "advance", both), (module, "verify", both), (module, "look_through", plain)]
        programs += [(generate, "advance", both), (decode, "verify", both), (lm, "score", plain)]
        for place, name, options in programs:
            patch.setattr(place, name, jax.jit(getattr(place, name).__wrapped__, **options))
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


@pytest.mark.parametrize("family", tiny.quick("llama", "jamba"))
def test_watching_changes_no_logit_and_no_memory(family, tmp_path):
    tiny.unpacked(f"{family}_0", tmp_path)
    lm = minillm.load(tmp_path, context=tiny.context(family, 0))
    tokens = np.random.default_rng(1).integers(0, lm.config.v, (1, 16)).astype(np.int32)

    @jax.jit
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


def test_the_text_is_the_one_that_generate_gives(transformer):
    prompt, options = "Recipe: Tomato Soup. Recipe: Tomato", {"temperature": 0.5, "top_k": 9, "seed": 3}
    seen = watch(transformer, prompt, new_sampler(**options), 12, transformer.drafter("prompt-lookup"))
    completion = transformer.generate(prompt, max_tokens=12, **options)
    assert seen.text[len(seen.prompt) :][: len(completion.tokens)] == completion.tokens
    for one in seen.passes:
        assert one.n_kept == (len(one.new) if one.start else len(seen.prompt))
        assert one.drafted[: len(one.new) - 1] == one.new[:-1]
        assert np.isfinite(one.stages["top_k 9"]).sum() == 9
        assert np.isfinite(one.stages["top_k 9"][one.new[-1]])
    assert {bool(one.drafted) for one in seen.passes[1:]} == {True, False}


class Parrot:
    """Drafts what it was told comes next, then nonsense."""

    def __init__(self, text):
        self.text = text

    def draft(self, text, most):
        right = self.text[len(text) : len(text) + 2]
        tokens = [*right, *[5] * most][:most]
        return Tree(tokens, list(range(-1, most - 1)))


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


def unpacked(html: str) -> tuple[dict, bytes]:
    """What a page knows, and its codes."""
    (data,) = re.findall(r'<script type="text/plain" id="data">([A-Za-z0-9+/=]+)</script>', html)
    whole = zlib.decompress(base64.b64decode(data))
    size = int.from_bytes(whole[:4], "little")
    return json.loads(whole[4 : 4 + size]), whole[4 + size :]


def array_of(where: dict, codes: bytes) -> np.ndarray:
    """An array of a page."""
    size = int(np.prod(where["shape"]))
    part = np.frombuffer(codes, np.int8 if where["signed"] else np.uint8, size, where["at"])
    return decoded(part.reshape(where["shape"]), where["max"], where["signed"])


@pytest.mark.parametrize("family", ["llama", "jamba", "olmoe"])
def test_the_page_has_the_numbers_of_the_record(family, recorded):
    seen = recorded(family)
    known, codes = unpacked(page_of(seen, family))
    for shown, one in zip(known["passes"], seen.passes, strict=True):
        assert (shown["tokens"], shown["new"], shown["kept"]) == (one.tokens, one.new, one.n_kept)
        assert [row[0][0] for row in shown["lens"]] == one.lens.argmax(axis=-1).tolist()
        for inside, told, state in zip(shown["blocks"], one.blocks, one.state, strict=True):
            norms = np.linalg.norm(told["y"], axis=-1)
            assert np.allclose(inside["norm"], norms, rtol=1e-3)
            assert ("weights" in inside, "gates" in inside) == ("weights" in told, "gates" in told)
            if "weights" in told:
                weights = told["weights"]
                assert np.all(np.abs(array_of(inside["weights"], codes) - weights) <= np.sqrt(weights) / 255 + 1e-5)
            if "gates" in told:
                dt, kept = told["gates"]["dt"], array_of(inside["state"], codes)[0]
                assert_near(array_of(inside["gates"]["dt"], codes), dt, 1 / 127)
                assert_near(kept, state["ssm"], 1 / 127)
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


@pytest.mark.slow
def test_the_longest_prompt_through_the_real_model_stays_below_ten_megabytes(smollm2):
    ids = smollm2.tokenizer.encode(" ".join(evaluation()))[:256]
    html = page_of(watch(smollm2, ids, GREEDY, MOST_TOKENS), "smollm2-135m")
    assert len(html) < 10e6


WALK = """
<script>
addEventListener("error", event => { document.title += ` error: ${event.message}`; });
(async () => {
  while (!known) await new Promise(done => setTimeout(done, 10));
  const press = key => dispatchEvent(new KeyboardEvent("keydown", { key })), seen = [], chosen = [];
  const arrays = block => [block.weights, block.q, block.state, ...Object.values(block.gates || {})].filter(x => x);
  const read = () => `${at.pass} ${at.step} ${$("panel").textContent.length > 100}`;
  press("Home"); seen.push(read());
  while (!$("next").disabled) { press("ArrowDown"); press("]"); press(","); seen.push(read());
    if (at.step === steps().length - 1) chosen.push(document.querySelector("#panel .token.new").textContent);
  }
  const back = [read()];
  while (!$("back").disabled) { press("ArrowUp"); back.push(read()); }
  document.title = JSON.stringify({
    steps: seen.length, same: String(seen) === String(back.reverse()),
    filled: seen.every(one => one.endsWith("true")),
    chosen,
    sums: known.passes.flatMap(one => one.blocks.flatMap(arrays)).map(one => values(one).reduce((a, b) => a + b)),
    wide: document.documentElement.scrollWidth > innerWidth, title: document.title,
  });
})();
</script>
"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("model", ["tiny-transformer", "tiny-moe", "tiny-mamba", "tiny-hybrid"])
def test_a_browser_walks_through_the_whole_generation_and_back(model, width, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs chromium; CI installs it")
    lm = minillm.load(model)
    prompt = "Recipe: Soup. Recipe: Soup. Recipe:"
    seen = watch(lm, prompt, GREEDY, 8, lm.drafter("prompt-lookup"))
    html = page_of(seen, model)
    known, codes = unpacked(html)
    write_page(tmp_path / "page.html", html.replace("</body>", WALK + "</body>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
    options += ["--virtual-time-budget=20000", "--dump-dom", f"file://{tmp_path}/page.html"]
    dom = subprocess.run([browser, *options], capture_output=True, text=True, timeout=100, check=True).stdout
    (title,) = re.findall("<title>(.*?)</title>", dom, re.S)
    result = json.loads(unescape(title))
    assert result["steps"] == len(seen.passes) * (len(lm.model.blocks) + 3)
    assert (result["same"], result["filled"], result["wide"]) == (True, True, False)
    names = [known["names"][str(one.new[-1])] for one in seen.passes]
    assert result["chosen"] == [name.replace(" ", "·").replace("\n", "↵") for name in names]
    inside = [block for one in known["passes"] for block in one["blocks"]]
    found = [[block.get(name) for name in ("weights", "q", "state")] for block in inside]
    found = [[*some, *block.get("gates", {}).values()] for some, block in zip(found, inside, strict=True)]
    sums = [float(array_of(one, codes).sum()) for some in found for one in some if one]
    assert np.allclose(result["sums"], sums, rtol=1e-3, atol=1e-3)
    assert "error" not in result["title"]
