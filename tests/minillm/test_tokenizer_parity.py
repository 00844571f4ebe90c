"""Tokenizers give the ids of the library that a vocabulary comes from, and of llama.cpp, on odd texts.

SmolLM2's stands for the real ones: it also puts a text together again, whole or piece by piece.
"""

import json
from base64 import b64decode
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
from goldens.make_smollm2_tokens import llama_cpp_tokens
from hypothesis import given
from hypothesis import strategies as st
from odd_texts import odd_texts
from vocabularies import cut_as, folder_with, model_file, original, rebuilt

from minillm.checkpoint.gguf_writer import write_gguf
from minillm.checkpoint.loader import open_checkpoint
from minillm.checkpoint.origin import tokenizer_of
from minillm.checkpoint.pieces import PieceModel
from minillm.checkpoint.pre_tokenizers import PRE_TOKENIZERS, ROWS
from minillm.checkpoint.pull import model_path
from minillm.checkpoint.vocabulary import tokenizer_from_folder, tokenizer_from_gguf
from minillm.folders import bundled_models
from minillm.tokenizer import LETTERS, Pieces

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


COUNTS = [150, pytest.param(2000, marks=pytest.mark.slow)]
CUTS = [names.split()[0] for names in ROWS]


def differing(count, ours, theirs):
    """The texts that are not the same tokens to both."""
    return {text: (ours(text), theirs(text)) for text in odd_texts(count) if ours(text) != theirs(text)}


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_pieces_are_those_of_the_library_before_and_after_a_gguf_file(kind, count, tmp_path):
    data = model_file(kind)
    library, folder = original(data), folder_with(tmp_path, model=data)
    read, (again, metadata) = tokenizer_from_folder(folder), rebuilt(folder)
    assert read is not None
    assert metadata["tokenizer.ggml.model"] == {"bpe": "llama", "unigram": "t5"}[kind]
    for tokenizer in (read, again):
        assert differing(count, partial(tokenizer.encode, special=False), library.EncodeAsIds) == {}
        assert all(tokenizer.decode([i]) == tokenizer.decode([i, 10**6]) for i in range(library.GetPieceSize()))
    assert isinstance(again.backend, Pieces)
    assert PieceModel.read(again.backend.library.serialized_model_proto(), "") == PieceModel.read(data, "")


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("pre", CUTS)
def test_byte_pairs_are_those_of_the_library_before_and_after_a_gguf_file(pre, count, tmp_path):
    library, folder = cut_as(pre), folder_with(tmp_path, pre=pre)
    read, (again, metadata) = tokenizer_from_folder(folder), rebuilt(folder)
    assert read is not None
    assert metadata["tokenizer.ggml.pre"] == pre
    for tokenizer in (read, again):
        assert differing(count, tokenizer.encode, lambda text: library.encode(text).ids) == {}
        assert all(tokenizer.decode([i]) == tokenizer.decode([i, 10**6]) for i in range(library.get_vocab_size()))
    assert differing(count, partial(again.encode, special=False), partial(read.encode, special=False)) == {}


def test_every_way_to_cut_differs_from_the_others():
    """Or the tests above would not see one in the place of another."""
    texts = odd_texts(2000)
    seen = {pre: tuple(tuple(one.ids) for one in cut_as(pre).encode_batch(texts)) for pre in CUTS}
    distinct = {(*map(str, PRE_TOKENIZERS[pre].steps), PRE_TOKENIZERS[pre].compose) for pre in CUTS}
    assert len(set(seen.values())) >= len(distinct) >= len(CUTS) - 1  # two differ in what is no cut


@pytest.mark.oracle
def test_llama_cpp_reads_the_bundled_vocabulary_from_a_file_of_ours_alike(tmp_path):
    checkpoint = open_checkpoint(bundled_models()["tiny-transformer"])
    texts = [text for text in odd_texts(2000) if "<unk>" not in text]  # to llama.cpp that is a name, too
    agree_with_llama_cpp(checkpoint, tmp_path / "tiny.gguf", texts)


@pytest.mark.oracle
@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_llama_cpp_cuts_plain_text_alike(pre, tmp_path):
    """Beyond ASCII its cuts are near those of the families' own files, no more.

    In deepseek-llm it keeps digits together, of which that vocabulary has no two in one token.
    """
    folder = folder_with(tmp_path / "folder", pre=pre, bos_token="<|endoftext|>")
    digits = "" if pre != "deepseek-llm" else "0123456789"
    plain = [text for text in odd_texts(400) if text.isascii() and not set(text) & set(digits)]
    agree_with_llama_cpp(open_checkpoint(folder), tmp_path / "tiny.gguf", plain)


@pytest.mark.oracle
def test_llama_cpp_reads_smollm2_alike(tokenizer):
    texts = [text for text in odd_texts(2000) if not set(text) & set(LOST)]  # after the merges, there
    theirs = llama_cpp_tokens(str(model_path("smollm2-135m")), texts)
    assert {text for text, ids in zip(texts, theirs, strict=True) if tokenizer.encode(text) != ids} == set()


def agree_with_llama_cpp(checkpoint, path, texts):
    """Write a file that llama.cpp reads as we do."""
    write_gguf(path, checkpoint.model(), checkpoint.config, checkpoint.arch, tokenizer=tokenizer_of(checkpoint))
    tokenizer = open_checkpoint(path).tokenizer()
    assert tokenizer is not None
    ours = [tokenizer.backend.encode(text, recognise=True, affixes=False) for text in texts]
    theirs = zip(texts, ours, llama_cpp_tokens(str(path), texts), strict=True)
    assert {text: (mine, other) for text, mine, other in theirs if mine != other} == {}


def mistral_data() -> Path:
    """Where mistral-common keeps its vocabularies."""
    found = find_spec("mistral_common")
    assert found is not None
    assert found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0]) / "data"


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["tokenizer.model.v1", "mistral_instruct_tokenizer_241114.model.v7"])
def test_mistrals_pieces_are_those_of_the_library(name, tmp_path):
    data = (mistral_data() / name).read_bytes()
    library, (again, _) = original(data), rebuilt(folder_with(tmp_path, model=data))
    assert differing(2000, partial(again.encode, special=False), library.EncodeAsIds) == {}
    assert all(isinstance(again.decode([i]), str) for i in range(library.GetPieceSize()))


@pytest.mark.oracle
def test_tekkens_byte_pairs_are_those_of_tiktoken(tmp_path):
    """The original has ranks of whole tokens in place of merges; GGUF files have the merges that they come from."""
    import tiktoken  # pyright: ignore[reportMissingImports]

    described = json.loads((mistral_data() / "tekken_240718.json").read_text("utf-8"))
    settings = described["config"]
    n_special = settings["default_num_special_tokens"]
    n = settings["default_vocab_size"] - n_special
    ranks = {b64decode(one["token_bytes"]): one["rank"] for one in described["vocab"][:n]}
    library = tiktoken.Encoding("tekken", pat_str=settings["pattern"], mergeable_ranks=ranks, special_tokens={})
    letters = {byte: letter for letter, byte in LETTERS.items()}
    spelled = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = [" ".join(spelled[part] for part in merged(token, ranks)) for token in ranks if len(token) > 1]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "tekken",
        "tokenizer.ggml.tokens": [*spelled.values(), "<s>"],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": n,
    }
    tokenizer = tokenizer_from_gguf(metadata, "tekken.gguf")
    assert tokenizer is not None
    assert differing(2000, partial(tokenizer.encode, special=False), library.encode_ordinary) == {}
    assert all(isinstance(tokenizer.decode([i]), str) for i in range(n))


def merged(token, ranks):
    """The two tokens of which one is merged: what is left when merges of lower rank have been made."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(parts[i] + parts[i + 1], ranks[token]) for i in range(len(parts) - 1)]
        i = min(range(len(pairs)), key=pairs.__getitem__)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts
