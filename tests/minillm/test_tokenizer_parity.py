"""SmolLM2's tokenizer cuts text as llama.cpp does, and puts it together again, whole or piece by piece."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

CASES = json.loads((Path(__file__).parents[1] / "goldens" / "smollm2_tokens.json").read_text("utf-8"))["cases"]

# SmolLM2's vocabulary has no token for some bytes, so these characters are dropped by every implementation.
# F1 and F2 are missing too: they begin the characters of planes 4 to 11, which Unicode has not assigned.
LOST = "\x04\x06\x13\x14\x16\x1d"
LOSSLESS = st.characters(exclude_categories=["Cs"], exclude_characters=LOST, max_codepoint=0x3FFFF)


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    return smollm2.tokenizer


def streamed(tokenizer, ids):
    """The pieces a stream gives for ids, the last one from its flush."""
    stream = tokenizer.stream()
    return [*(stream.push(token) for token in ids), stream.flush()]


def without_lost(text):
    return text.translate(dict.fromkeys(map(ord, LOST)))


def test_ids_are_those_of_llama_cpp(tokenizer):
    different = {text: (tokenizer.encode(text), ids) for text, ids in CASES if tokenizer.encode(text) != ids}
    assert different == {}


def test_decoding_gives_the_text_back(tokenizer):
    different = {text for text, _ in CASES if tokenizer.decode(tokenizer.encode(text)) != without_lost(text)}
    assert different == set()


def test_streaming_never_gives_half_a_character(tokenizer):
    for text, ids in CASES:
        pieces = streamed(tokenizer, ids)
        assert "".join(pieces) == tokenizer.decode(ids)
        assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces), text


@given(text=st.text(LOSSLESS), special=st.booleans())
def test_any_text_survives_whole_and_streamed(tokenizer, text, special):
    ids = tokenizer.encode(text, special=special)
    pieces = streamed(tokenizer, ids)
    assert tokenizer.decode(ids) == "".join(pieces) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


# Ids up to 260 are mostly single bytes, which seldom make whole characters.
@given(ids=st.lists(st.integers(0, 260) | st.integers(0, 49151), max_size=30))
def test_any_tokens_stream_as_they_decode(tokenizer, ids):
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)
