"""What is measured is what the definitions say, in float64; how sure it is, by repeating it on texts made up."""

import json
from array import array
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import QUICK
from files import byte_vocabulary
from hypothesis import given, settings
from hypothesis import strategies as st

import minillm
from minillm import evaluate
from minillm.checkpoint.vocabulary import tokenizer_from_gguf
from minillm.errors import UserError
from minillm.evaluate import Corpus, Tally, corpus, measures, quality, tallied, windows
from minillm.ops import cross_entropy_ref
from minillm.tokenizer import Tokenizer

CONFIG = {
    "model_type": "llama",
    "vocab_size": 272,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}
METADATA = {"model": "gpt2", "pre": "smollm", "tokens": byte_vocabulary(), "merges": ["a b"], "eos_token_id": 1}
METADATA["token_type"] = array("i", [3, 3] + [1] * 270)
WITH_END = tokenizer_from_gguf({f"tokenizer.ggml.{name}": value for name, value in METADATA.items()}, "test")
assert WITH_END is not None
WITH_BOS = Tokenizer(WITH_END.backend, ends=(1,), prefix=(0,))
TEXTS = ["abc", "a longer text, of 50 bytes or so: " * 5, "é🙂 <|im_end|>", "b" * 40, "the end"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """An unoptimised program; those of the bundled models' cards run what users run."""
    monkeypatch.setattr(evaluate, "measured", PROGRAM)


PROGRAM = jax.jit(cast(Any, measures.measured).__wrapped__, compiler_options=QUICK)
compared, kl_divergence = (
    jax.jit(one, compiler_options=QUICK) for one in (measures.compared, measures.kl_divergence)
)


@pytest.fixture(scope="module")
def pair():
    return [minillm.init(CONFIG, seed).model for seed in (0, 1)]


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def by_definition(q: np.ndarray, p: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """What `compared` gives, in float64."""
    ln_q, ln_p = log_softmax(q.astype(np.float64)), log_softmax(p.astype(np.float64))
    kld = np.sum(np.exp(ln_p) * (ln_p - ln_q), axis=-1)
    same = q.argmax(axis=-1) == p.argmax(axis=-1)
    return np.stack([cross_entropy_ref(q, targets), cross_entropy_ref(p, targets), kld, same])


# ----------------------------------------------------------------------------------------------- each token


@given(seed=st.integers(0, 999), noise=st.sampled_from([0, 1e-4, 1e-2, 1.0, 30.0]), size=st.sampled_from([1, 8]))
@settings(max_examples=30)
def test_scores_are_those_of_the_definitions_also_where_models_hardly_differ(seed, noise, size):
    rng = np.random.default_rng(seed)
    p = (size * rng.normal(size=(16, 50))).astype(np.float32)
    q = (p + noise * rng.normal(size=p.shape)).astype(np.float32)
    targets = rng.integers(0, 50, 16).astype(np.int32)
    found = np.asarray(compared([q, p], targets))
    expected = by_definition(q, p, targets)
    np.testing.assert_allclose(found[:2], expected[:2], rtol=1e-5, atol=1e-5)
    # ln p and ln q are each off by e or less: to first order that shifts a divergence by sqrt(2 KL) e
    e = 4 * 2**-24 * np.abs(log_softmax(q)).max()
    allowed = np.sqrt(2 * np.maximum(expected[2], 0)) * e + e * e + 2**-20 * expected[2]
    assert np.all(np.abs(found[2] - expected[2]) <= allowed)
    assert np.array_equal(found[3], expected[3])


@given(seed=st.integers(0, 999), noise=st.sampled_from([0, 1e-6, 1e-3, 1.0, 100.0]))
@settings(max_examples=20)
def test_no_divergence_is_negative_and_that_of_a_model_from_itself_is_0(seed, noise):
    rng = np.random.default_rng(seed)
    p = jnp.asarray(10 * rng.normal(size=(4, 50)), jnp.float32)
    q = p + jnp.asarray(noise * rng.normal(size=p.shape), jnp.float32)
    assert np.all(np.asarray(kl_divergence(p, q)) >= 0)
    assert np.all(np.asarray(kl_divergence(p, p)) == 0)


def test_what_one_or_both_find_impossible_is_counted_as_the_definition_says():
    inf = np.float32(np.inf)
    p, q = (
        np.array([[0, 1, -inf, -inf], [0, 1, 2, 3]], np.float32),
        np.array([[0, 1, 2, -inf], [0, 1, 2, -inf]], np.float32),
    )
    expected = np.exp(log_softmax(p[0, :2])) @ (log_softmax(p[0, :2]) - log_softmax(q[0, :3])[:2])
    found = np.asarray(kl_divergence(p, q))
    assert found[0] == pytest.approx(expected, rel=1e-5)
    assert found[1] == np.inf


def test_no_more_than_a_few_rows_of_logits_are_in_memory():
    v, t = 1 << 15, 1024
    model = jax.eval_shape(lambda: minillm.init(CONFIG | {"vocab_size": v}).model)
    tokens, n = jax.ShapeDtypeStruct((1, t), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.int32)
    memory = cast(Any, measures.measured).lower((model, model), tokens, tokens, n).compile().memory_analysis()
    assert memory.temp_size_in_bytes < t * v * 4


# ------------------------------------------------------------------------------------------------- windows


@given(
    st.lists(st.text(max_size=60), max_size=4),
    st.sampled_from([4, 5, 16, 31]),
    st.sampled_from([WITH_END, WITH_BOS]),
)
@settings(max_examples=40)
def test_every_token_of_a_document_is_scored_once_with_what_is_before_it(document, t, tokenizer):
    ids = [token for piece in document for token in tokenizer.encode(piece, special=False)] + [1]
    begin = 0 if tokenizer is WITH_BOS else 1
    place = 0
    for window in windows(document, tokenizer, t):
        assert window.scored > 0
        first, *seen = window.tokens
        assert first == begin
        assert len(window.tokens) - 1 <= t
        end = place + window.scored
        assert seen == ids[end - len(seen) : end]
        before = len(seen) - window.scored
        assert before == place or 1 + before >= t / 2  # all there is, or half a window
        place = end
    assert place == len(ids)


@given(
    st.lists(st.text(st.characters(codec="utf-8", min_codepoint=32), max_size=60), max_size=4),
    st.sampled_from([4, 16, 100]),
)
@settings(max_examples=40)
def test_windows_stand_for_all_bytes_of_a_document(document, t):
    size = sum(window.bytes for window in windows(document, WITH_BOS, t))
    assert size == pytest.approx(len("".join(document).encode()))


def test_a_name_of_a_control_token_in_a_text_is_text():
    (window,) = windows(["<|im_end|>"], WITH_BOS, 64)
    assert window.tokens.count(1) == 1
    assert WITH_BOS.encode("<|im_end|>").count(1) == 1  # as a prompt it would be the token


def test_a_tokenizer_without_a_token_to_begin_with_is_refused():
    with pytest.raises(UserError, match="begin with 0 tokens"):
        next(windows(["text"], Tokenizer(WITH_BOS.backend), 64))


# --------------------------------------------------------------------------------------------------- texts


@given(text=st.text(st.sampled_from("ab\né🙂\r"), max_size=60), size=st.integers(1, 9))
def test_a_plain_file_comes_in_pieces_and_whole(text, size, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "plain.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "PIECE", size)
        pieces = list(corpus.pieces(path))
    assert "".join(pieces) == text
    assert all(len(piece.encode()) <= 2 * size + 3 for piece in pieces)


@given(text=st.text(st.sampled_from("ab\né🙂"), max_size=40), size=st.integers(1, 9), data=st.data())
def test_a_byte_that_is_not_utf8_is_named_wherever_it_stands(text, size, data, tmp_path_factory):
    cut = data.draw(st.integers(0, len(text)))
    path = tmp_path_factory.getbasetemp() / "broken.txt"
    path.write_bytes(text[:cut].encode() + b"\xff" + text[cut:].encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "PIECE", size)
        with pytest.raises(UserError, match=rf"is not UTF-8: byte {len(text[:cut].encode())} is 0xff"):
            Corpus.in_file(path)


def test_a_character_that_the_end_of_the_file_cuts_is_named(tmp_path):
    path = tmp_path / "cut.txt"
    path.write_bytes("aé".encode()[:-1])
    with pytest.raises(UserError, match="byte 1 is 0xc3"):
        Corpus.in_file(path)


@pytest.mark.parametrize(
    "line", [b"text", b"{}", b'{"text": 3}', b'"text"', b'{"text": "\xff"}', rb'{"text": "\ud800"}']
)
def test_a_line_without_a_text_is_named(tmp_path, line):
    path = tmp_path / "texts.jsonl"
    path.write_bytes(b'{"text": "good", "title": "ignored"}\n' + line + b"\n")
    with pytest.raises(UserError, match=r"texts.jsonl, line 2 has no text, expected UTF-8 as"):
        Corpus.in_file(path)


def test_a_corpus_knows_how_large_it_is_and_every_change_of_it(tmp_path):
    texts = ["a", "é", ""]
    one, path = Corpus.of("a", lambda: ([text] for text in texts)), tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert (one.count, one.bytes) == (3, 3)
    assert Corpus.in_file(path)[2:] == one[2:]
    others = [["aé", ""], ["a", "é"], ["", "a", "é"], ["a", "e", ""]]
    assert len({one.digest, *(Corpus.of("a", lambda x=x: ([t] for t in x)).digest for x in others)}) == 5


# ------------------------------------------------------------------------------------------------- figures


def drawn(rng: np.random.Generator, units: int, length: int = 40) -> list[np.ndarray]:
    """Scores of units whose tokens are like each other, as those of a document are."""
    scores = []
    for _ in range(units):
        n, level = rng.integers(1, length), rng.normal()
        nll, reference = 3 + level + rng.normal(size=(2, n))
        kld = 0.01 * np.exp(level + rng.normal(size=n))
        scores.append(np.stack([nll, reference, kld, rng.random(n) < 0.9]))
    return scores


def tally_of(scores: list[np.ndarray], paired: bool = True) -> Tally:
    tally = Tally(paired)
    for one in scores:
        tally.add(one if paired else one[:1], 3.0 * one.shape[1])
    return tally


@given(seed=st.integers(0, 999), units=st.integers(1, 30))
@settings(max_examples=40)
def test_figures_are_those_of_all_tokens_at_once(seed, units):
    scores = drawn(np.random.default_rng(seed), units)
    nll, reference, kld, same = np.concatenate(scores, axis=1)
    found = tally_of(scores).figures()
    p, r = np.exp(nll.mean()), np.exp(reference.mean())
    expected = {
        "perplexity": p,
        "reference_perplexity": r,
        "delta_perplexity": p - r,
        "ln_perplexity_ratio": np.log(p / r),
        "bits_per_byte": nll.mean() / np.log(2) / 3,
        "reference_bits_per_byte": reference.mean() / np.log(2) / 3,
        "kld_mean": kld.mean(),
        "same_top": same.mean(),
    }
    assert {name: figure.value for name, figure in found.items() if name != "kld_p99"} == pytest.approx(expected)
    p99 = found["kld_p99"].value
    assert np.mean(kld > p99 * 2 ** (1 / 16)) <= 0.01 <= np.mean(kld >= p99 / 2 ** (1 / 16))  # EDGES' width
    alone = tally_of(scores, paired=False).figures()
    assert alone == {name: found[name] for name in ("perplexity", "bits_per_byte")}
    for figure in found.values():
        assert (figure.low is None) == (figure.high is None) == (units == 1)
        assert figure.low is None or figure.high is None or figure.low <= figure.value <= figure.high


def test_intervals_hold_the_truth_in_19_cases_of_20_though_tokens_depend_on_their_neighbours():
    rng = np.random.default_rng(0)
    everything = np.concatenate(drawn(rng, 20_000), axis=1)
    nll, _, kld, same = everything
    truth = {
        "perplexity": np.exp(nll.mean()),
        "delta_perplexity": 0.0,
        "kld_mean": kld.mean(),
        "same_top": same.mean(),
    }
    truth |= {
        "kld_p99": np.quantile(kld, 0.99),
        "bits_per_byte": nll.mean() / np.log(2) / 3,
        "ln_perplexity_ratio": 0.0,
    }
    cases, hits, naive = 400, dict.fromkeys(truth, 0), 0
    for _ in range(cases):
        scores = drawn(rng, 60)
        found = tally_of(scores).figures()
        for name, value in truth.items():
            _, low, high = found[name]
            assert low is not None
            assert high is not None
            hits[name] += low <= value <= high
        tokens = np.concatenate(scores, axis=1)[0]
        naive += abs(tokens.mean() - nll.mean()) <= 1.96 * tokens.std() / np.sqrt(len(tokens))
    # 400 draws of 0.95 vary by 0.011; heavy tails (the KLDs) are known to cost a normal interval some points
    for name, hit in hits.items():
        assert (0.85 if name.startswith("kld") else 0.92) <= hit / cases <= 0.98, (name, hit / cases)
    assert naive / cases < 0.6  # as if tokens were independent


def test_few_units_make_wide_intervals():
    """Of three equal units, t = 4.303 standard errors of their mean."""
    scores = [np.full((1, 10), nll) for nll in (1.0, 2.0, 3.0)]
    _, low, high = tally_of(scores, paired=False).figures()["perplexity"]
    half = 4.302653 * 1 / np.sqrt(3)
    assert (low, high) == pytest.approx((np.exp(2 - half), np.exp(2 + half)), rel=1e-6)


# -------------------------------------------------------------------------------------------------- models


def test_a_models_figures_are_those_of_its_logits(pair):
    """Each document by itself in float64, from all logits at once, in the windows that the docstring states."""
    t, scores = 32, []
    lms = [minillm.init(CONFIG, seed) for seed in (0, 1)]
    for text in TEXTS:
        ids = [0, *WITH_BOS.encode(text, special=False), 1]
        rows, place = [], 1
        while place < len(ids):
            end = min(len(ids), t + 1 if place == 1 else place + t // 2)
            seen = [0, *ids[max(1, place - t // 2) : end]]
            q, p = (lm.logits([seen[:-1]])[0, place - end :] for lm in lms)
            rows.append(by_definition(q, p, np.array(seen)[place - end :]))
            place = end
        scores.append(np.concatenate(rows, axis=1))
    expected = np.concatenate(scores, axis=1).mean(axis=1)
    found = quality(pair[0], WITH_BOS, TEXTS, t, pair[1])
    assert found["perplexity"].value == pytest.approx(np.exp(expected[0]), rel=1e-5)
    assert found["reference_perplexity"].value == pytest.approx(np.exp(expected[1]), rel=1e-5)
    assert found["kld_mean"].value == pytest.approx(expected[2], rel=1e-4)
    assert found["same_top"].value == expected[3]
    bits = sum(one[0].sum() for one in scores) / np.log(2) / len("".join(TEXTS).encode())
    assert found["bits_per_byte"].value == pytest.approx(bits, rel=1e-5)


def test_a_model_does_not_differ_from_itself(pair):
    found = quality(pair[0], WITH_BOS, TEXTS, 32, pair[0])
    for name in ("delta_perplexity", "ln_perplexity_ratio", "kld_mean", "kld_p99"):
        assert found[name] == (0, 0, 0)
    assert found["same_top"] == (1, 1, 1)


def test_the_divergence_is_from_the_reference_to_the_model(pair):
    there, back = (quality(one, WITH_BOS, TEXTS, 32, other) for one, other in (pair, pair[::-1]))
    assert there["kld_mean"].value != pytest.approx(back["kld_mean"].value, rel=1e-4)
    assert there["perplexity"].value == pytest.approx(back["reference_perplexity"].value)
    assert there["delta_perplexity"].value == pytest.approx(-back["delta_perplexity"].value)


@given(order=st.permutations(TEXTS))
@settings(max_examples=5)
def test_the_order_of_documents_does_not_matter(order, pair):
    found, expected = (quality(pair[0], WITH_BOS, texts, 32, pair[1]) for texts in (order, TEXTS))
    for name, figure in expected.items():
        assert found[name] == pytest.approx(figure, rel=1e-9), name


@pytest.mark.parametrize("texts", [TEXTS, ["one long text " * 20]], ids=["documents", "windows"])
def test_a_tally_goes_on_from_anywhere_to_the_same_bits(pair, texts):
    one, states = Corpus.of("a", lambda: ([text] for text in texts)), []
    whole = Tally(paired=True)
    for _ in tallied((pair[0], pair[1]), WITH_BOS, one, 32, whole):
        states.append(json.dumps(whole.state()))
    assert len(states) > 3
    for state in states[::2]:
        tally = Tally(paired=True)
        tally.restore(json.loads(state))
        for _ in tallied((pair[0], pair[1]), WITH_BOS, one, 32, tally):
            pass
        assert json.dumps(tally.state()) == states[-1]
        assert tally.figures() == whole.figures()


@pytest.mark.parametrize("which", ["the model", "the reference"])
def test_scores_that_are_no_numbers_are_refused(pair, which):
    broken = pair[0].replace(norm=jax.tree.map(lambda x: x * np.float32(np.nan), pair[0].norm))
    models = (broken, pair[1]) if which == "the model" else (pair[1], broken)
    with pytest.raises(UserError, match=f"{which} has scores that are not finite near byte 0"):
        quality(models[0], WITH_BOS, TEXTS, 32, models[1])
    with pytest.raises(UserError, match="the model has scores that are not finite"):
        quality(broken, WITH_BOS, TEXTS, 32)


def test_nothing_to_score_is_refused(pair):
    with pytest.raises(UserError, match="is empty, expected text"):
        quality(pair[0], WITH_BOS, ["", ""], 32)
