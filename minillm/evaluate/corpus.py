"""Texts to measure on, as a stream: documents, each a stream of pieces, and the windows in which they are read."""

import json
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError
from ..tokenizer import Tokenizer

PIECE = 1 << 20  # bytes of a plain file that are tokenised at once


class Corpus(NamedTuple):
    """Documents that can be read again and again.

    name is for messages; digest changes with every byte; count documents hold `bytes` of UTF-8.
    """

    name: str
    documents: Callable[[], Iterator[Iterable[str]]]
    digest: str
    count: int
    bytes: int

    @staticmethod
    def of(name: str, documents: Callable[[], Iterator[Iterable[str]]]) -> "Corpus":
        """Read all documents once; UserError if there is no text in them."""
        digest, count, size = sha256(), 0, 0
        for document in documents():
            for piece in document:
                raw = piece.encode()
                digest.update(raw)
                size += len(raw)
            digest.update(b"\xff")  # in no UTF-8
            count += 1
        if size == 0:
            raise UserError(f"{name} is empty, expected text")
        return Corpus(name, documents, digest.hexdigest(), count, size)

    @staticmethod
    def in_file(path: Path) -> "Corpus":
        """A plain file is one document; a line of a .jsonl file is one, as {"text": "…"}.

        UserError if it is no file, not UTF-8, or a line is something else.
        """
        if not path.is_file():
            raise UserError(f"{path} is no file, expected text or .jsonl")
        if path.suffix == ".jsonl":
            return Corpus.of(str(path), lambda: lines(path))
        return Corpus.of(str(path), lambda: iter([pieces(path)]))


def pieces(path: Path) -> Iterator[str]:
    """A plain file, a piece at a time, cut after a line if there is one that ends in the next megabyte."""
    decoder, place = getincrementaldecoder("utf-8")(), 0
    with open(path, "rb") as file:
        while raw := file.read(PIECE) + file.readline(PIECE):
            yield decoded(decoder, raw, place, path)
            place = file.tell()
        decoded(decoder, b"", place, path)


def decoded(decoder, raw: bytes, place: int, path: Path) -> str:
    """The text of these bytes and those that the decoder kept back; no bytes end the text."""
    kept = len(decoder.getstate()[0])
    try:
        return decoder.decode(raw, final=not raw)
    except UnicodeDecodeError as error:
        where = place - kept + error.start
        raise UserError(f"{path} is not UTF-8: byte {where} is {error.object[error.start]:#04x}") from None


def lines(path: Path) -> Iterator[list[str]]:
    """The texts in a file of JSON lines."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = json.loads(line)["text"]
                text.encode()  # fails for what is no text, and for half a surrogate pair
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                raise UserError(f'{path}, line {number} has no text, expected UTF-8 as {{"text": "…"}}') from None
            yield [text]


class Window(NamedTuple):
    """Tokens a model reads at once but for the last; it is asked for the last `scored`, which stand for `bytes`."""

    tokens: list[int]
    scored: int
    bytes: float


def windows(document: Iterable[str], tokenizer: Tokenizer, t: int) -> Iterator[Window]:
    """The windows of t tokens or fewer in which a document is read, as `minillm.evaluate` says.

    The bytes of a piece are spread evenly over its tokens. UserError if no token can stand before the first.
    """
    ends = list(tokenizer.ends[:1])
    begin = tokenizer.encode("") or ends
    if not begin or len(begin) > t // 2:
        raise UserError(f"texts begin with {len(begin)} tokens in this model, expected 1 to {t // 2}")
    tokens = chain(counted(document, tokenizer), ((end, 0.0) for end in ends))
    room = t + 1 - len(begin)
    fresh, old = [*islice(tokens, room)], []
    while fresh:
        new = [token for token, _ in fresh]
        yield Window([*begin, *old, *new], len(new), sum(size for _, size in fresh))
        old = [*old, *new][-(room - t // 2) :]
        fresh = [*islice(tokens, t // 2)]


def counted(document: Iterable[str], tokenizer: Tokenizer) -> Iterator[tuple[int, float]]:
    """The tokens of a document, each with the bytes that it stands for."""
    for piece in document:
        ids = tokenizer.encode(piece, special=False)
        size = len(piece.encode())
        yield from ((token, size / len(ids)) for token in ids)
