"""Vocabularies out of files that may be anything: what a file says counts, and what it cannot mean is named."""

import json
from array import array
from types import SimpleNamespace
from typing import Any

import files
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models
from vocabularies import V, cut_as, folder_with, model_file, original, rebuilt

from minillm.checkpoint.pieces import (
    BYTE,
    BYTES,
    CONTROL,
    FIXED32,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    VARINT,
    PieceModel,
    field,
    fields,
    varint,
)
from minillm.checkpoint.vocabulary import tokenizer_from_folder, tokenizer_from_gguf, tokenizer_to_gguf
from minillm.errors import UserError

# A vocabulary of pieces as GGUF files have them: what was added later has spaces as such.
PIECES = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL), ("  ", USER_DEFINED), ("<end_of_turn>", CONTROL)]
PIECES += [(f"<0x{i:02X}>", BYTE) for i in range(256)]
PIECES += [(text, NORMAL) for text in ("▁", "a", "b", "ab", "▁a", "▁ab")] + [("[PAD]", UNUSED)]


def entries(model: str = "llama", **changes: Any) -> dict[str, Any]:
    """The metadata of that vocabulary, or of a byte-level one; None leaves an entry out."""
    if model == "gpt2":
        tokens = files.byte_vocabulary()
        values = {"tokens": tokens, "merges": ["a b"], "pre": "smollm"}
        values["token_type"] = array("i", [CONTROL] * 2 + [NORMAL] * (len(tokens) - 2))
    else:
        scores = array("f", [-float(i) for i in range(len(PIECES))])
        values = {"tokens": [text for text, _ in PIECES], "scores": scores}
        values["token_type"] = array("i", [kind for _, kind in PIECES])
    values = {"model": model} | values | changes
    return {f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None}


def read(*arguments: Any, **changes: Any):
    tokenizer = tokenizer_from_gguf(entries(*arguments, **changes), "some.gguf")
    assert tokenizer is not None
    return tokenizer


def names(tokenizer, text: str, **options: Any) -> list[str]:
    """The tokens of a text by what they stand for."""
    return [tokenizer.backend.bytes_of(i).decode() for i in tokenizer.encode(text, **options)]


def test_what_a_file_does_not_say_is_as_in_llama_cpp():
    assert names(read(), "ab") == ["<s>", " ab"]
    assert names(read("t5"), "ab") == ["ab", "<s>"]  # 1 is EOS there
    assert read().ends == (2, 4)


def test_what_a_file_says_counts():
    assert names(read(add_bos_token=False), "ab") == [" ab"]
    assert names(read(add_eos_token=True), "ab") == ["<s>", " ab", "</s>"]
    assert names(read(add_eos_token=True, eos_token_id=4), "ab")[-1] == "<end_of_turn>"
    assert names(read(add_space_prefix=False), "ab") == ["<s>", "ab"]
    assert names(read(), " a   a ", special=False) == ["  ", "a", "  ", " a", " "]
    assert names(read(remove_extra_whitespaces=True), " a   a ", special=False) == [" a", " a"]
    assert names(read("gpt2", add_bos_token=True, bos_token_id=0), "ab") == ["<|im_start|>", "ab"]
    assert names(read("gpt2", pre="llama-bpe", bos_token_id=1), "ab") == ["<|im_end|>", "ab"]
    assert names(read("gpt2", pre="llama-bpe", add_bos_token=False), "ab") == ["ab"]


def test_special_tokens_are_found_by_their_names_only_where_they_are_asked_for():
    assert names(read(), "a<end_of_turn>a  a") == ["<s>", " a", "<end_of_turn>", " a", "  ", "a"]
    assert "<end_of_turn>" not in names(read(), "a<end_of_turn>", special=False)
    assert names(read(), "[PAD]", special=False) == list(" [PAD]")  # unused: nothing gives it


WRONG = {
    "tokenizer.ggml.model is 'bert', expected one of: gpt2, llama, t5": {"model": "bert"},
    "tokenizer.ggml.tokens is missing or not a list of strings": {"tokens": None},
    "tokenizer.ggml.scores does not list one score for each of 268 tokens": {"scores": array("f", [1.0])},
    "token_type does not list one type for each of 268 tokens": {"token_type": [1] * 268},
    "token_type lists 9, expected numbers from 1 to 6": {"token_type": array("i", [9] * 268)},
    "tokens: not a model the sentencepiece library can read": {"token_type": array("i", [1] * 268)},
    "tokens: not a model": {"tokens": ["<unk>", *(["a"] * 267)]},
    "tokens: not a model the": {"tokens": ["", *(text for text, _ in PIECES[1:])]},
    "bos_token_id is 300, expected an id below 268": {"bos_token_id": 300},
    "eos_token_id is -1, expected a whole number": {"eos_token_id": -1},
    "add_bos_token is 'yes', expected true or false": {"add_bos_token": "yes"},
    "add_space_prefix is 1, expected true or false": {"add_space_prefix": 1},
    "precompiled_charsmap is no list of bytes": {"precompiled_charsmap": "x"},
    "not a model the sentencepiece library": {"precompiled_charsmap": array("B", b"\0\4\0\0" + bytes(1100))},
    "tokenizer.ggml.pre is None, expected one of: gpt-2": {"model": "gpt2", "pre": None},
    "tokenizer.ggml.pre is 'default', expected one of: gpt-2": {"model": "gpt2", "pre": "default"},
    "bos_token_id is missing": {"model": "gpt2", "pre": "gpt-2", "merges": [], "add_bos_token": True},
}


@pytest.mark.parametrize("message", WRONG)
def test_what_cannot_be_meant_is_named(message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")) as error:
        read(**WRONG[message])
    assert str(error.value).startswith("some.gguf: ")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
)
ARRAYS = st.lists(st.integers(-9, 9), max_size=9).map(lambda ints: array("i", ints)) | st.binary(max_size=9).map(
    lambda raw: array("B", raw)
)
KEYS = "tokens scores token_type merges pre bos_token_id eos_token_id add_bos_token add_eos_token".split()
KEYS += ["add_space_prefix", "remove_extra_whitespaces", "precompiled_charsmap"]


@settings(max_examples=60)
@given(
    st.sampled_from(["llama", "t5", "gpt2"]), st.dictionaries(st.sampled_from(KEYS), VALUES | ARRAYS, max_size=3)
)
def test_metadata_of_any_kind_are_read_or_refused(model, changes):
    try:
        tokenizer = read(model, **changes)
    except UserError:
        return
    assert isinstance(tokenizer.decode(tokenizer.encode("any text\0</s>")), str)


@settings(max_examples=60)
@given(
    st.lists(st.text(max_size=3), max_size=40),
    st.lists(st.floats(width=32), min_size=40, max_size=40),
    st.lists(st.integers(1, 6), min_size=40, max_size=40),
    st.sampled_from(["llama", "t5", "gpt2"]),
)
def test_vocabularies_of_any_texts_are_read_or_refused(texts, scores, kinds, model):
    tokens = ["<unk>", *texts]
    kinds, scores = array("i", [UNKNOWN, *kinds[: len(texts)]]), array("f", [0.0, *scores[: len(texts)]])
    lists = {"tokens": tokens, "scores": scores, "token_type": kinds, "merges": texts, "bos_token_id": 0}
    try:
        tokenizer = read(model, pre="gpt-2", add_bos_token=False, add_eos_token=False, eos_token_id=0, **lists)
    except UserError:
        return
    ids = tokenizer.encode(" ".join(texts) + "é\0")
    assert isinstance(tokenizer.decode([*ids, *range(-1 if model != "gpt2" else 0, 60)]), str)


NUMBERED = st.tuples(st.integers(1, 1000), st.integers(0, 2**63) | st.binary() | st.floats(width=32))


@given(st.lists(NUMBERED, max_size=8))
def test_messages_are_read_as_they_were_written(wanted):
    forms = {int: VARINT, bytes: BYTES, float: FIXED32}
    found = list(fields(b"".join(field(number, value) for number, value in wanted)))
    assert repr(found) == repr([((number, forms[type(value)]), value) for number, value in wanted])  # NaN is NaN


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_model_is_read_as_the_library_reads_it_and_written_as_it_was(kind):
    library = original(model_file(kind))
    model = PieceModel.read(model_file(kind), "")
    assert [piece.text for piece in model.pieces] == library.IdToPiece(list(range(library.GetPieceSize())))
    assert [piece.score for piece in model.pieces] == library.GetScore(list(range(library.GetPieceSize())))
    assert PieceModel.read(model.written(), "") == model


ADDED = {"1": ("<s>", True), "3": ("\n", False), "2050": ("<|eot_id|>", True), "2051": ("two  words", False)}


def test_a_folder_adds_tokens_to_its_tokenizer_model(tmp_path):
    decoder = {i: {"content": text, "special": special} for i, (text, special) in ADDED.items()}
    folder = folder_with(tmp_path, model=model_file("bpe"), added_tokens_decoder=decoder)
    files.write_folder(folder, files.CONFIG | {"vocab_size": 2052, "eos_token_id": 2}, {})
    plain = original(model_file("bpe"))
    for tokenizer in (tokenizer_from_folder(folder), rebuilt(folder)[0]):
        assert tokenizer is not None
        assert tokenizer.encode("dog<|eot_id|>", special=True)[-1] == 2050
        assert 2050 not in tokenizer.encode("dog<|eot_id|>", special=False)
        assert tokenizer.encode("a\ntwo  words", special=False)[-2:] == [3, 2051]
        assert tokenizer.encode("the quick dog", special=False) == plain.EncodeAsIds("the quick dog")
        assert tokenizer.ends == (2, 2050)


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        ({"x": {"content": "a"}}, "added_tokens_decoder: x is"),
        ({"12345678": {"content": "a"}}, "12345678 is"),
        (
            {"999999": {"content": "a"}},
            "holds 2048 pieces, but a token is added with id 999999, expected ids below",
        ),
        ({"7": "a"}, "added_tokens_decoder: 7 is 'a', expected an object"),
        ({"7": {"content": 5}}, "content is 5, expected a string"),
        ({"7": {"content": "\ud800"}}, "content is .*, expected text"),
        (
            {"2049": {"content": "the"}, "2050": {"content": "the"}},
            "not a model the sentencepiece library can read",
        ),
    ],
)
def test_tokens_that_cannot_be_added_are_named(decoder, message, tmp_path):
    folder = folder_with(tmp_path, model=model_file("bpe"), added_tokens_decoder=decoder)
    with pytest.raises(UserError, match=message):
        tokenizer_from_folder(folder)


GROUP = varint(100 << 3 | 3) + varint(100 << 3 | 4)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (GROUP, "cannot be read as a sentencepiece model: field 100 is a group"),
        (field(1, field(1, b"\xff") + field(2, -1.0)), "not a model the sentencepiece library can read: 'utf-8'"),
        (2 * field(1, field(1, b"\xff")), "not a model the sentencepiece library can read"),
    ],
)
def test_a_model_with_more_to_it_than_text_is_named(more, message, tmp_path):
    added = {"1": {"content": "<s>", "special": True}}
    folder = folder_with(tmp_path, model=model_file("bpe"), added_tokens_decoder=added)
    (folder / "tokenizer.model").write_bytes(model_file("bpe") + more)
    with pytest.raises(UserError, match=message) as caught:
        tokenizer_from_folder(folder)
    assert str(folder / "tokenizer.model") in str(caught.value)


def test_fields_of_another_form_are_other_fields_as_to_the_library(tmp_path):
    data = model_file("bpe") + varint(1 << 3) + varint(5) + field(2, field(3, 1.0))
    assert PieceModel.read(data, "") == PieceModel.read(model_file("bpe"), "")
    assert original(data).EncodeAsIds("the dog") == original(model_file("bpe")).EncodeAsIds("the dog")


TURN = "<|im_end|>"


def as_word_in_json(folder):
    library = cut_as("qwen2")
    library.add_tokens([AddedToken(TURN, normalized=False)])
    folder_with(folder).joinpath("tokenizer.json").write_text(library.to_str())
    return tokenizer_from_folder(folder)


def as_word_in_settings(folder):
    added = {"2050": {"content": TURN, "special": False}}
    return tokenizer_from_folder(folder_with(folder, model=model_file("bpe"), added_tokens_decoder=added))


def as_word_in_model(folder):
    model = PieceModel.read(model_file("bpe"), "").with_added({2048: (TURN, False)})
    return tokenizer_from_folder(folder_with(folder, model=model.written()))


def as_word_in_gguf(model, kind):
    def of(folder):
        values = entries(model, pre="gpt-2", bos_token_id=0)
        tokens, kinds = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
        tokens[1], kinds[1] = TURN, kind
        return tokenizer_from_gguf(values, "some.gguf")

    return of


@pytest.mark.parametrize(
    "made",
    [as_word_in_json, as_word_in_settings, as_word_in_model]
    + [as_word_in_gguf(model, kind) for model in ("gpt2", "llama") for kind in (NORMAL, USER_DEFINED)],
)
def test_a_token_that_can_only_be_of_turns_is_one_whatever_the_file_takes_it_for(made, tmp_path):
    """Otherwise a message could write it."""
    tokenizer = made(tmp_path)
    end = tokenizer.backend.controls[TURN]
    assert end in tokenizer.ends
    assert end in tokenizer.encode(f"a{TURN}b")
    assert end not in tokenizer.encode(f"a{TURN}b", special=False)


@pytest.mark.parametrize(("named", "expected"), [("default", "{{ 1 }}"), ("tool_use", None)])
def test_of_several_chat_templates_the_default_is_taken(named, expected, tmp_path):
    several = [{"name": "rag", "template": "{{ 2 }}"}, {"name": named, "template": "{{ 1 }}"}]
    tokenizer = tokenizer_from_folder(folder_with(tmp_path, pre="qwen2", chat_template=several))
    assert tokenizer is not None
    assert tokenizer.chat_template == expected


def test_settings_put_bos_and_eos_around_a_text(tmp_path):
    """DeepSeek's tokenizer.json does not."""
    folder = folder_with(tmp_path / "json", pre="deepseek-v3", bos_token="<|im_start|>", add_bos_token=True)
    for tokenizer in (tokenizer_from_folder(folder), rebuilt(folder)[0]):
        assert tokenizer is not None
        assert tokenizer.encode("")[:1] == [tokenizer.backend.controls["<|im_start|>"]]
    settings = {"add_bos_token": False, "add_eos_token": True, "eos_token": {"content": "</s>"}}
    folder = folder_with(tmp_path / "model", model=model_file("bpe"), **settings)
    for tokenizer in (tokenizer_from_folder(folder), rebuilt(folder)[0]):
        assert tokenizer is not None
        assert tokenizer.encode("") == [2]


def test_a_gguf_file_names_all_tokens_of_the_model_and_has_the_template(tmp_path):
    folder = folder_with(tmp_path, pre="qwen2", eos_token="<|endoftext|>", chat_template="{{ messages }}")
    config: Any = SimpleNamespace(v=V + 5, eos=())
    metadata = tokenizer_to_gguf(folder, config)
    assert metadata["tokenizer.ggml.tokens"][-6:] == [f"[PAD{i}]" for i in range(V - 1, V + 5)]
    assert list(metadata["tokenizer.ggml.token_type"][-6:]) == [UNUSED] * 6
    assert metadata["tokenizer.ggml.eos_token_id"] == 0
    assert metadata["tokenizer.chat_template"] == "{{ messages }}"
    assert tokenizer_to_gguf(files.write_folder(tmp_path / "none"), config) == {"tokenizer.ggml.model": "none"}


def test_what_gguf_has_no_words_for_is_refused(tmp_path):
    config: Any = SimpleNamespace(v=V, eos=())
    odd = Tokenizer.from_str(cut_as("qwen2").to_str())
    odd.normalizer = None  # pyright: ignore[reportAttributeAccessIssue]
    strips = json.loads(cut_as("qwen2").to_str())
    strips["added_tokens"][0]["rstrip"] = True
    far = json.loads(cut_as("qwen2").to_str())
    far["model"]["vocab"]["far"] = 4_000_000_000
    for text, message in (
        (json.dumps(far), "has a token with id 4000000000, expected ids below"),
        (odd.to_str(), "of no byte-level kind that GGUF has a name for"),
        (Tokenizer(models.WordPiece({"a": 0}, unk_token="a")).to_str(), "of no byte-level kind"),
        (json.dumps(strips), "token '<|endoftext|>' takes spaces with it"),
    ):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(UserError, match=message.replace("|", r"\|")):
            tokenizer_to_gguf(tmp_path, config)
