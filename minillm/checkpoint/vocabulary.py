"""Tokenizers from checkpoints: a folder's `tokenizer.json` or `tokenizer.model`, or rebuilt from GGUF metadata."""

from array import array
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from ..errors import UserError
from ..tokenizer import END_TOKENS, Bytes, Pieces, Tokenizer
from .jsonfile import LARGEST, read_json

CONTROL, USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type

# How text is cut before merging, by `tokenizer.ggml.pre`. Digits stand alone in smollm; converters that drop
# this get numbers wrong.
PRE_TOKENIZERS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
}


def tokenizer_from_gguf(metadata: dict[str, Any], where: str) -> Tokenizer | None:
    """Byte-level BPE from `tokenizer.ggml.*`; None if they say that there is none."""
    values = {
        key.removeprefix("tokenizer.ggml."): value
        for key, value in metadata.items()
        if key.startswith("tokenizer.ggml.")
    }
    if values.get("model") in ("none", "no_vocab"):
        return None
    if values.get("model") != "gpt2":
        raise UserError(f"{where}: tokenizer.ggml.model is {values.get('model')!r}, expected 'gpt2'")
    if not isinstance(values.get("pre"), str) or values["pre"] not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise UserError(f"{where}: tokenizer.ggml.pre is {values.get('pre')!r}, expected one of: {known}")
    tokens = strings(values, "tokens", where)
    merges = [(left, right) for left, _, right in (m.partition(" ") for m in strings(values, "merges", where))]
    types = values.get("token_type", array("i", [1]) * len(tokens))
    if not isinstance(types, array) or len(types) != len(tokens):
        raise UserError(
            f"{where}: tokenizer.ggml.token_type does not list one type for each of {len(tokens)} tokens"
        )
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise UserError(f"{where}: tokenizer.ggml.tokens lists the same token twice")
    try:
        backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{where}: tokenizer.ggml.merges do not fit the tokens: {error}") from None
    backend.pre_tokenizer = PRE_TOKENIZERS[values["pre"]]
    backend.decoder = decoders.ByteLevel()
    marked = [(token, kind) for token, kind in zip(tokens, types, strict=True) if kind in (CONTROL, USER_DEFINED)]
    backend.add_tokens([AddedToken(token, special=kind == CONTROL, normalized=False) for token, kind in marked])
    bos, eos = (token_text(values, f"{key}_token_id", tokens, where) for key in ("bos", "eos"))
    prefix = (vocabulary[bos],) if values.get("add_bos_token") and bos else ()
    controls = {token for token, kind in marked if kind == CONTROL}
    ends = {vocabulary[token] for token in (*END_TOKENS, eos) if token in controls}
    template = metadata.get("tokenizer.chat_template")
    if not isinstance(template, str | None):
        raise UserError(f"{where}: tokenizer.chat_template is a {type(template).__name__}, expected a string")
    return Tokenizer(Bytes(backend), bos, eos, tuple(sorted(ends)), template, prefix)


def tokenizer_from_folder(folder: Path) -> Tokenizer | None:
    """The tokenizer of a Hugging Face folder; None if it has neither tokenizer.json nor tokenizer.model."""
    settings = folder / "tokenizer_config.json"
    values = read_json(settings) if settings.is_file() else {}
    template = folder / "chat_template.jinja"
    chat_template = read_text(template) if template.is_file() else values.get("chat_template")
    if not isinstance(chat_template, str | None):
        raise UserError(f"{settings}: chat_template is a {type(chat_template).__name__}, expected a string")
    bos, eos = (added_text(values.get(key)) for key in ("bos_token", "eos_token"))
    if (folder / "tokenizer.json").is_file():
        backend = bytes_from_json(folder / "tokenizer.json")
        added = backend.get_added_tokens_decoder().items()
        ends = {i for i, token in added if token.special and token.content in (*END_TOKENS, eos)}
        return Tokenizer(Bytes(backend), bos, eos, tuple(sorted(ends)), chat_template)
    if (folder / "tokenizer.model").is_file():
        pieces = pieces_from_file(folder / "tokenizer.model")
        ends = {i for name, i in pieces.controls.items() if name in (*END_TOKENS, eos)}
        begins = values.get("add_bos_token", True) and "<s>" in pieces.controls
        prefix = (pieces.controls["<s>"],) if begins else ()
        return Tokenizer(pieces, bos or "<s>", eos or "</s>", tuple(sorted(ends)), chat_template, prefix)
    return None


def bytes_from_json(path: Path) -> tokenizers.Tokenizer:
    """What a tokenizer.json describes."""
    text = read_text(path)
    try:
        backend = tokenizers.Tokenizer.from_str(text)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises nothing narrower, and a panic of its own is no Exception
        raise UserError(f"{path}: not a tokenizer the tokenizers library can read: {error}") from None
    backend.no_padding()
    backend.no_truncation()
    return backend


def pieces_from_file(path: Path) -> Pieces:
    """What a `.model` file of the sentencepiece library holds."""
    from sentencepiece import SentencePieceProcessor  # only here: other checkpoints do without

    if path.stat().st_size > LARGEST:
        raise UserError(f"{path}: has {path.stat().st_size} bytes, expected at most {LARGEST}")
    library = SentencePieceProcessor()
    try:
        library.LoadFromSerializedProto(path.read_bytes())
    except (RuntimeError, OSError) as error:
        raise UserError(f"{path}: not a model the sentencepiece library can read: {error}") from None
    return Pieces(library)


def read_text(path: Path) -> str:
    """A text file of bounded size; UserError if it is larger or not UTF-8."""
    if path.stat().st_size > LARGEST:
        raise UserError(f"{path}: has {path.stat().st_size} bytes, expected at most {LARGEST}")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 at byte {error.start}") from None


def strings(values: dict[str, Any], key: str, where: str) -> list[str]:
    """A metadata entry that must be a list of strings."""
    found = values.get(key)
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise UserError(f"{where}: tokenizer.ggml.{key} is missing or not a list of strings")
    return found


def token_text(values: dict[str, Any], key: str, tokens: list[str], where: str) -> str:
    """The token an id entry points to; empty if there is no such entry."""
    found = values.get(key)
    if found is None:
        return ""
    if not isinstance(found, int) or not 0 <= found < len(tokens):
        raise UserError(f"{where}: tokenizer.ggml.{key} is {found!r}, expected an id below {len(tokens)}")
    return tokens[found]


def added_text(value: Any) -> str:
    """The text of a token in tokenizer_config.json, which is a string or an object with `content`."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else ""
