"""Byte-level BPE vocabularies of the `tokenizers` library: tokenizer.json, and what GGUF keeps of it, both ways."""

import json
from array import array
from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models

from ..config import shown
from ..errors import UserError
from ..tokenizer import Bytes, asked, is_mark
from .pieces import CONTROL, NORMAL, UNUSED, USER_DEFINED
from .pre_tokenizers import Cut, growth, name_of

LONGEST = 1000  # times a text: a step can double it, and forty of them fill any memory

# What a model of byte pairs is beside its vocabulary, its merges and whether whole pieces stay so.
PLAIN = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
}


def bytes_from_json(text: str, where: str) -> Bytes:
    """What the text of a tokenizer.json describes."""
    complaint = f"{where}: not a tokenizer the tokenizers library can read"
    library = asked(lambda: Tokenizer.from_str(text), complaint)
    if growth(library) > LONGEST:
        raise UserError(f"{where}: its steps can make a text over {LONGEST} times as long, expected fewer of them")
    library.no_padding()
    library.no_truncation()
    asked(lambda: library.encode(""), complaint)
    marks = [one for one in library.get_added_tokens_decoder().values() if is_mark(one.content) and not one.special]
    for mark in marks:
        mark.special = True
    library.add_special_tokens(marks)
    return Bytes(library, where)


def bytes_from_gguf(
    tokens: Sequence[str], merges: Sequence[str], kinds: Sequence[int], cut: Cut, where: str
) -> Bytes:
    """The library's tokenizer of a GGUF vocabulary."""
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise UserError(f"{where}: tokenizer.ggml.tokens lists the same token twice")
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    complaint = f"{where}: tokenizer.ggml.merges do not fit the tokens"
    model = asked(lambda: models.BPE(vocabulary, pairs, ignore_merges=cut.whole), complaint)
    library = Tokenizer(model)
    cut.apply(library)
    library.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    marked = [(token, kind) for token, kind in zip(tokens, kinds, strict=True) if kind in (CONTROL, USER_DEFINED)]
    library.add_tokens([AddedToken(token, special=kind == CONTROL, normalized=False) for token, kind in marked])
    return Bytes(library, where)


def bytes_to_gguf(found: Bytes, where: str) -> dict[str, Any]:
    """The entries of `tokenizer.ggml` that say what a tokenizer does; UserError if GGUF has no words for it."""
    described = json.loads(found.library.to_str())
    model, added = described["model"], described["added_tokens"]
    plain = all((model.get(key) or None) == (value or None) for key, value in PLAIN.items())
    name = name_of(found.library) if plain else None
    if name is None:
        raise UserError(f"{where}: the tokenizer is of no byte-level kind that GGUF has a name for")
    for token in added:
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise UserError(f"{where}: token {shown(token['content'])} takes spaces with it, which GGUF cannot say")
    names = model["vocab"] | {token["content"]: token["id"] for token in added}
    tokens, kinds = [f"[PAD{i}]" for i in range(max(names.values(), default=-1) + 1)], {}
    for token, i in names.items():
        tokens[i], kinds[i] = token, NORMAL
    kinds |= {token["id"]: CONTROL if token["special"] else USER_DEFINED for token in added}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return {
        "model": "gpt2",
        "pre": name,
        "tokens": tokens,
        "token_type": array("i", [kinds.get(i, UNUSED) for i in range(len(tokens))]),
        "merges": merges,
    }
