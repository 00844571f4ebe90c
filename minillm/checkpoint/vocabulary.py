"""Tokenizers from checkpoints: a Hugging Face folder's, a GGUF file's, and the one as metadata of the other."""

import re
from array import array
from pathlib import Path
from typing import Any

from ..config import Config, Fields, shown
from ..errors import UserError
from ..tokenizer import END_TOKENS, Backend, Bytes, Pieces, Tokenizer, is_mark
from .byte_pairs import bytes_from_gguf, bytes_from_json, bytes_to_gguf
from .jsonfile import LARGEST, read_json
from .pieces import (
    BPE,
    CONTROL,
    KINDS,
    LEAST,
    NORMAL,
    UNIGRAM,
    UNUSED,
    USER_DEFINED,
    Added,
    PieceModel,
    pieces_from_file,
    pieces_from_gguf,
    pieces_to_gguf,
)
from .pre_tokenizers import PRE_TOKENIZERS, Cut

GGML, TEMPLATE = "tokenizer.ggml.", "tokenizer.chat_template"
WORDS = (NORMAL, USER_DEFINED)
ADDED_ID = re.compile("[0-9]{1,6}")  # the library is given all tokens up to the last one

# What is so where a GGUF file does not say, by its `tokenizer.ggml.model`: the same as in llama.cpp.
USUAL = {
    "gpt2": {"add_bos_token": False, "add_eos_token": False},
    "llama": {"add_bos_token": True, "add_eos_token": False, "bos_token_id": 1, "eos_token_id": 2},
    "t5": {"add_bos_token": False, "add_eos_token": True, "eos_token_id": 1},
}
PIECES = {
    "llama": PieceModel((), BPE, prefix_space=True, trim=False),
    "t5": PieceModel((), UNIGRAM, prefix_space=False, trim=False),
}


def tokenizer_from_gguf(metadata: dict[str, Any], where: str) -> Tokenizer | None:
    """What the metadata `tokenizer.ggml.*` describe; None if they say that there is no tokenizer."""
    model = metadata.get(GGML + "model")
    if model in ("none", "no_vocab"):
        return None
    if not isinstance(model, str) or model not in USUAL:
        raise UserError(f"{where}: tokenizer.ggml.model is {shown(model)}, expected one of: {', '.join(USUAL)}")
    cut = cut_of(metadata, where) if model == "gpt2" else None
    usual = USUAL[model] | ({"add_bos_token": True} if cut and cut.begins else {})
    fields = Fields({GGML + key: value for key, value in usual.items()} | metadata, where)
    tokens = strings(fields, "tokens")
    backend = bytes_backend(fields, tokens, cut) if cut else pieces_backend(fields, tokens, PIECES[model])
    template = metadata.get(TEMPLATE)
    if not isinstance(template, str | None):
        raise UserError(f"{where}: {TEMPLATE} is a {type(template).__name__}, expected a string")
    (bos, prefix), (eos, suffix) = (end_token(fields, name, tokens) for name in ("bos", "eos"))
    return with_ends(backend, bos, eos, template, prefix, suffix)


def end_token(fields: Fields, name: str, tokens: list[str]) -> tuple[str, tuple[int, ...]]:
    """The text of BOS or EOS, if there is one, and its id if it is put before or after a text."""
    key, wanted = f"{GGML}{name}_token_id", fields.flag(f"{GGML}add_{name}_token", False)
    if not fields.has(key) and not wanted:
        return "", ()
    token = fields.integer(key, least=0)
    fields.require(token < len(tokens), key, f"an id below {len(tokens)}")
    return tokens[token], (token,) if wanted else ()


def bytes_backend(fields: Fields, tokens: list[str], cut: Cut) -> Bytes:
    """The library's tokenizer of a byte-level vocabulary."""
    return bytes_from_gguf(tokens, strings(fields, "merges"), kinds_of(fields, tokens), cut, fields.where)


def cut_of(metadata: dict[str, Any], where: str) -> Cut:
    """How text is cut before bytes are merged."""
    name = metadata.get(GGML + "pre")
    if not isinstance(name, str) or name not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise UserError(f"{where}: tokenizer.ggml.pre is {shown(name)}, expected one of: {known}")
    return PRE_TOKENIZERS[name]


def pieces_backend(fields: Fields, tokens: list[str], usual: PieceModel) -> Pieces:
    """The library's model of a vocabulary of pieces."""
    charsmap = fields.values.get(GGML + "precompiled_charsmap", array("B"))
    if not isinstance(charsmap, array) or charsmap.itemsize != 1:
        raise UserError(f"{fields.where}: tokenizer.ggml.precompiled_charsmap is no list of bytes")
    model = PieceModel(
        (),
        usual.kind,
        charsmap.tobytes(),
        fields.flag(GGML + "add_space_prefix", usual.prefix_space),
        fields.flag(GGML + "remove_extra_whitespaces", usual.trim),
    )
    scores = [float(one) for one in numbers(fields, "scores", "score", tokens)]
    return pieces_from_gguf(tokens, scores, kinds_of(fields, tokens), model, fields.where)


def tokenizer_from_folder(folder: Path) -> Tokenizer | None:
    """The tokenizer of a Hugging Face folder; None if it has neither tokenizer.json nor tokenizer.model."""
    if (folder / "tokenizer.json").is_file():
        return tokenizer_from_json(folder)
    return tokenizer_from_model(folder) if (folder / "tokenizer.model").is_file() else None


def tokenizer_from_json(folder: Path) -> Tokenizer:
    """The tokenizer of a folder with a tokenizer.json."""
    path, fields = folder / "tokenizer.json", settings(folder)
    backend = bytes_from_json(read_text(path), str(path))
    bos, eos = (added_text(fields.values.get(key)) for key in ("bos_token", "eos_token"))
    prefix = (backend.controls[bos],) if fields.flag("add_bos_token", False) and bos in backend.controls else ()
    if set(prefix) <= set(backend.encode("", recognise=False, affixes=True)):
        prefix = ()  # the file says so itself; DeepSeek's leave it to the settings
    return with_ends(backend, bos, eos, chat_template(folder, fields), prefix, ())


def tokenizer_from_model(folder: Path) -> Tokenizer:
    """The tokenizer of a folder with a tokenizer.model."""
    path, fields = folder / "tokenizer.model", settings(folder)
    backend = pieces_from_file(read_bytes(path), added_tokens(fields), str(path))
    bos, eos = (added_text(fields.values.get(key)) for key in ("bos_token", "eos_token"))
    around = []
    for flag, usual, name in (("add_bos_token", True, bos or "<s>"), ("add_eos_token", False, eos or "</s>")):
        wanted = fields.flag(flag, usual) and name in backend.controls
        around.append((backend.controls[name],) if wanted else ())
    return with_ends(backend, bos or "<s>", eos or "</s>", chat_template(folder, fields), *around)


def with_ends(
    backend: Backend, bos: str, eos: str, template: str | None, prefix: tuple[int, ...], suffix: tuple[int, ...]
) -> Tokenizer:
    """A tokenizer that knows at which of its tokens a text ends."""
    ends = {backend.controls[name] for name in (*END_TOKENS, eos) if name in backend.controls}
    return Tokenizer(backend, bos, eos, tuple(sorted(ends)), template, prefix, suffix)


def tokenizer_to_gguf(folder: Path, config: Config) -> dict[str, Any]:
    """The metadata `tokenizer.*` that say what a folder's tokenizer does; UserError if GGUF has no words for it.

    Which tokens end a text is said by the writer of the file, from the config, if that lists them.
    """
    found = tokenizer_from_folder(folder)
    if found is None:
        return {GGML + "model": "none"}
    if (folder / "tokenizer.model").is_file():  # a tokenizer.json beside it was made of it
        found = tokenizer_from_model(folder)
    backend, names = found.backend, found.backend.vocabulary()
    where, last = str(folder), max(names.values(), default=-1)
    if last >= config.v:
        raise UserError(f"{folder}: its tokenizer has a token with id {last}, expected ids below {config.v}")
    entries = bytes_to_gguf(backend, where) if isinstance(backend, Bytes) else pieces_to_gguf(backend, where)
    pad(entries, config.v)
    bos, eos = names.get(found.bos), names.get(found.eos)
    around = found.encode("")
    ways = (([], False, False), ([bos], True, False), ([eos], False, True), ([bos, eos], True, True))
    flags = next(((begins, ends) for ids, begins, ends in ways if ids == around), None)
    if flags is None:
        raise UserError(f"{folder}: its tokenizer puts {around} around a text, expected at most BOS and EOS")
    entries |= dict(zip(("add_bos_token", "add_eos_token"), flags, strict=True))
    ids = {"bos_token_id": bos, "eos_token_id": None if config.eos else eos}
    entries |= {key: value for key, value in ids.items() if value is not None}
    template = {} if found.chat_template is None else {TEMPLATE: found.chat_template}
    return {GGML + key: value for key, value in entries.items()} | template


def pad(entries: dict[str, Any], v: int) -> None:
    """Name the tokens that the model has room for and the tokenizer does not know."""
    more = range(len(entries["tokens"]), v)
    entries["tokens"] = [*entries["tokens"], *(f"[PAD{i}]" for i in more)]
    for key, value in (("token_type", UNUSED), ("scores", LEAST)):
        if key in entries:
            entries[key] += array(entries[key].typecode, [value] * len(more))


def settings(folder: Path) -> Fields:
    """What a folder's tokenizer_config.json says, if there is one."""
    path = folder / "tokenizer_config.json"
    return Fields(read_json(path) if path.is_file() else {}, str(path))


def chat_template(folder: Path, fields: Fields) -> str | None:
    """The Jinja source of a folder's chat template."""
    path = folder / "chat_template.jinja"
    found = read_text(path) if path.is_file() else fields.values.get("chat_template")
    if isinstance(found, list):  # several by name
        named = (one for one in found if isinstance(one, dict) and one.get("name") == "default")
        found = next(named, {}).get("template")
    if not isinstance(found, str | None):
        raise UserError(f"{fields.where}: chat_template is a {type(found).__name__}, expected a string")
    return found


def added_text(value: Any) -> str:
    """The text of a token in tokenizer_config.json, which is a string or an object with `content`."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else ""


def added_tokens(fields: Fields) -> Added:
    """The tokens that a tokenizer_config.json adds to those of a tokenizer.model, or makes special."""
    group, found = fields.group("added_tokens_decoder"), {}
    for key in group.values:
        group.require(ADDED_ID.fullmatch(key) is not None, key, "an id of at most six digits in front of it")
        one = group.group(key)
        content = one.text("content")
        one.require(content.isprintable() or content.isspace(), "content", "text")
        found[int(key)] = (content, one.flag("special", False) or is_mark(content))
    return found


def read_text(path: Path) -> str:
    """A text file of bounded size; UserError if it is larger or not UTF-8."""
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 at byte {error.start}") from None


def read_bytes(path: Path) -> bytes:
    """A file of bounded size; UserError if it is larger."""
    if path.stat().st_size > LARGEST:
        raise UserError(f"{path}: has {path.stat().st_size} bytes, expected at most {LARGEST}")
    return path.read_bytes()


def strings(fields: Fields, key: str) -> list[str]:
    """A metadata entry that must be a list of strings."""
    found = fields.values.get(GGML + key)
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise UserError(f"{fields.where}: tokenizer.ggml.{key} is missing or not a list of strings")
    return found


def numbers(fields: Fields, key: str, noun: str, tokens: list[str], usual: array | None = None) -> array:
    """A metadata entry that must be a list with a number for each token."""
    found = fields.values.get(GGML + key, usual)
    if not isinstance(found, array) or len(found) != len(tokens):
        expected = f"one {noun} for each of {len(tokens)} tokens"
        raise UserError(f"{fields.where}: tokenizer.ggml.{key} does not list {expected}")
    return found


def kinds_of(fields: Fields, tokens: list[str]) -> array:
    """Which of the six kinds each token is, of which those that look like control tokens are some."""
    found = numbers(fields, "token_type", "type", tokens, array("i", [NORMAL]) * len(tokens))
    odd = next((kind for kind in found if kind not in KINDS), None)
    if odd is not None:
        raise UserError(f"{fields.where}: tokenizer.ggml.token_type lists {odd}, expected numbers from 1 to 6")
    kinds = (
        CONTROL if kind in WORDS and is_mark(token) else kind for token, kind in zip(tokens, found, strict=True)
    )
    return array(found.typecode, kinds)
