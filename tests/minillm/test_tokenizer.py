"""Tokenizers of the sentencepiece kind: what goes in comes out, in one piece or token by token."""

import io
import json

import pytest
import sentencepiece
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from minillm.checkpoint.vocabulary import tokenizer_from_folder
from minillm.errors import UserError
from minillm.tokenizer import Bytes, Tokenizer

TEXT = ["the quick brown fox jumps over the lazy dog", "a small text\nof two lines", "Привет, мир", "1234567890"]


def write_model(folder, **options) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 20),
        model_writer=model,
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        **options,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())


@pytest.fixture(
    scope="module", params=[{"add_dummy_prefix": False, "user_defined_symbols": ["\n"]}, {}], ids=["plain", "llama"]
)
def tokenizer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pieces")
    write_model(folder, **request.param)
    found = tokenizer_from_folder(folder)
    assert found is not None
    return found


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_decoding_gives_back_any_text(tokenizer, text):
    ids = tokenizer.encode(text, special=False)
    assert tokenizer.decode(ids) == text


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_a_stream_of_tokens_is_the_text(tokenizer, text):
    ids, stream = tokenizer.encode(text, special=False), tokenizer.stream()
    assert "".join([*map(stream.push, ids), stream.flush()]) == tokenizer.decode(ids)


def test_control_tokens_count_only_where_they_are_asked_for(tokenizer):
    bos, eos = 1, 2
    assert tokenizer.encode("a</s>b") == [
        bos,
        *tokenizer.encode("a", special=False),
        eos,
        *tokenizer.encode("b", special=False),
    ]
    assert eos not in tokenizer.encode("a</s>b", special=False)
    assert tokenizer.ends == (eos,)
    assert tokenizer.decode([bos, *tokenizer.encode("a", special=False), eos]) == "<s>a</s>"


def test_ids_that_are_no_pieces_say_nothing(tokenizer):
    """A model may have a larger vocabulary than its tokenizer."""
    ids = tokenizer.encode("the dog", special=False)
    assert tokenizer.decode([*ids, 5000]) == "the dog"


def test_settings_say_whether_a_text_begins_with_a_token(tmp_path):
    write_model(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False, "eos_token": "</s>"}))
    tokenizer = tokenizer_from_folder(tmp_path)
    assert tokenizer is not None
    assert 1 not in tokenizer.encode("the dog")


def test_a_file_that_is_no_model_is_refused(tmp_path):
    for content in (b"", b"\xff" * 100, b"{}"):
        (tmp_path / "tokenizer.model").write_bytes(content)
        with pytest.raises(UserError, match=r"tokenizer.model: not a model the sentencepiece library can read"):
            tokenizer_from_folder(tmp_path)


def test_a_library_that_gives_up_on_a_text_is_one_sentence():
    library = tokenizers.Tokenizer(models.BPE({"a": 0}, []))
    endless = pre_tokenizers.Split(tokenizers.Regex("(a+)+$"), "isolated")  # its regular expressions are bounded
    library.pre_tokenizer = endless  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(UserError, match=r"^t\.json: the tokenizer failed: .*retry-limit") as caught:
        Tokenizer(Bytes(library, "t.json")).encode("a" * 40 + "!")
    assert "\n" not in str(caught.value)
