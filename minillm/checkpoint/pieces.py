"""Vocabularies of the sentencepiece library: its `.model` files, and what GGUF keeps of them, both ways.

A `.model` file is a protocol buffer, and GGUF has words for a few of its fields. From those a whole one is made
again, so that the library does the work, wherever a vocabulary comes from. The numbers of fields and of kinds are
those of sentencepiece_model.proto.
"""

import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..chat import in_a_line
from ..errors import UserError
from ..tokenizer import Pieces, is_mark

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = KINDS = range(
    1, 7
)  # the same in `tokenizer.ggml.token_type`
UNIGRAM, BPE = 1, 2
MODELS = {UNIGRAM: "t5", BPE: "llama"}  # `tokenizer.ggml.model`
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # stands for a space in pieces
Added = Mapping[int, tuple[str, bool]]  # tokens by id: their texts, and whether they are special
LEAST = -1000.0  # the score of a piece that was added later: those that are found as they stand need none


class Piece(NamedTuple):
    """A token: its text, what merging it is worth or its log-probability, and which of the six kinds it is."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class PieceModel:
    """What decides how a text becomes pieces.

    kind is UNIGRAM or BPE; charsmap the library's table by which text is normalised, if any; prefix_space says that
    a space is put before a text, trim that runs of spaces become one and those at the ends go.
    """

    pieces: Sequence[Piece]
    kind: int
    charsmap: bytes = b""
    prefix_space: bool = True
    trim: bool = True

    @staticmethod
    def read(data: bytes, where: str) -> "PieceModel":
        """The content of a `.model` file that the library has read; UserError if there is more to it than this."""
        pieces, trainer, normalizer = [], {}, {}
        try:
            for key, value in fields(data):
                if key == (1, BYTES):
                    one = dict(fields(value))
                    kind = one.get((3, VARINT), NORMAL)
                    pieces.append(Piece(one.get((1, BYTES), b"").decode(), one.get((2, FIXED32), 0.0), kind))
                trainer |= dict(fields(value)) if key == (2, BYTES) else {}
                normalizer |= dict(fields(value)) if key == (3, BYTES) else {}
        except ValueError as error:  # also of pieces that are not UTF-8
            raise UserError(f"{where}: cannot be read as a sentencepiece model: {error}") from None
        kind = trainer.get((3, VARINT), UNIGRAM)
        if kind not in MODELS or trainer.get((24, VARINT), 0) or not normalizer.get((5, VARINT), 1):
            raise UserError(f"{where}: is no model of unigram or BPE pieces with {SPACE} in front of their words")
        prefix_space, trim = (bool(normalizer.get((number, VARINT), 1)) for number in (3, 4))
        return PieceModel(pieces, kind, normalizer.get((2, BYTES), b""), prefix_space, trim)

    def written(self) -> bytes:
        """The content of a `.model` file."""
        pieces = (
            field(1, field(1, text.encode()) + field(2, score) + field(3, kind))
            for text, score, kind in self.pieces
        )
        fallback = any(piece.kind == BYTE for piece in self.pieces)
        normalizer = field(2, self.charsmap) + field(3, self.prefix_space) + field(4, self.trim)
        return b"".join(pieces) + field(2, field(3, self.kind) + field(35, fallback)) + field(3, normalizer)

    def with_added(self, added: Added) -> "PieceModel":
        """The same with tokens that were added later, or made special."""
        pieces = list(self.pieces)
        pieces += (Piece(f"[PAD{i}]", LEAST, UNUSED) for i in range(len(pieces), max(added, default=-1) + 1))
        for i, (text, special) in added.items():
            kind, text = (CONTROL, text) if special else (USER_DEFINED, text.replace(" ", SPACE))
            if pieces[i].kind in (NORMAL, USER_DEFINED, UNUSED):
                pieces[i] = Piece(text, pieces[i].score if pieces[i].text == text else LEAST, kind)
        return replace(self, pieces=pieces)


def loaded(data: bytes, where: str) -> Pieces:
    """What the library makes of the content of a `.model` file."""
    from sentencepiece import SentencePieceProcessor  # only here: other vocabularies do without

    library = SentencePieceProcessor()
    try:
        library.LoadFromSerializedProto(data)
        library.IdToPiece([*range(library.GetPieceSize())])  # so that all are known to be text
    except (RuntimeError, OSError, UnicodeDecodeError) as error:
        complaint = "not a model the sentencepiece library can read"
        raise UserError(f"{where}: {complaint}: {in_a_line(str(error))}") from None
    return Pieces(library)


def pieces_from_file(data: bytes, added: Added, where: str) -> Pieces:
    """What the content of a `.model` file holds, and the tokens that its folder adds to it.

    Ids that nothing is said of come to lie between them; UserError if those would be most.
    """
    found = loaded(data, where)
    n, last = found.library.GetPieceSize(), max(added, default=0)
    if last >= 2 * n:
        raise UserError(
            f"{where}: holds {n} pieces, but a token is added with id {last}, expected ids below {2 * n}"
        )
    words = ((name, i) for name, i in found.vocabulary().items() if name not in found.controls)
    added = {i: (name, True) for name, i in words if is_mark(name)} | {**added}
    return loaded(PieceModel.read(data, where).with_added(added).written(), where) if added else found


def pieces_from_gguf(
    tokens: Sequence[str], scores: Sequence[float], kinds: Sequence[int], model: PieceModel, where: str
) -> Pieces:
    """The library's model of a GGUF vocabulary; what is not in the lists is taken from `model`."""
    # llama.cpp finds these before it turns spaces into ▁, the library after
    texts = (
        one.replace(" ", SPACE) if kind == USER_DEFINED else one for one, kind in zip(tokens, kinds, strict=True)
    )
    pieces = [Piece(*one) for one in zip(texts, scores, kinds, strict=True)]
    return loaded(replace(model, pieces=pieces).written(), f"{where}: tokenizer.ggml.tokens")


def pieces_to_gguf(pieces: Pieces, where: str) -> dict[str, Any]:
    """The entries of `tokenizer.ggml` that say what the library's model does."""
    model = PieceModel.read(pieces.library.serialized_model_proto(), where)
    texts = [one.text.replace(SPACE, " ") if one.kind == USER_DEFINED else one.text for one in model.pieces]
    unknown = next(i for i, piece in enumerate(model.pieces) if piece.kind == UNKNOWN)
    charsmap = {"precompiled_charsmap": array("B", model.charsmap)} if model.charsmap else {}
    return charsmap | {
        "model": MODELS[model.kind],
        "tokens": texts,
        "scores": array("f", [piece.score for piece in model.pieces]),
        "token_type": array("i", [piece.kind for piece in model.pieces]),
        "unknown_token_id": unknown,
        "add_space_prefix": model.prefix_space,
        "remove_extra_whitespaces": model.trim,
    }


# Protocol buffers: a field is its number and the form of its value in a varint, then the value.
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def field(number: int, value: float | bytes) -> bytes:
    """A field of a message."""
    if isinstance(value, bytes):
        return varint(number << 3 | BYTES) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | FIXED32) + struct.pack("<f", value)
    return varint(number << 3 | VARINT) + varint(value)


def varint(value: int) -> bytes:
    """A number in groups of 7 bits, the lowest first; all but the last are marked."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def fields(data: bytes) -> Iterator[tuple[tuple[int, int], Any]]:
    """What a message that is whole says: of each field its number and form, and the value.

    A known number in another form is another field, to the library too. ValueError for groups, a form of old.
    """
    place = 0

    def number() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            value |= (byte & 127) << shift
            place, shift = place + 1, shift + 7
            if byte < 128:
                return value

    while place < len(data):
        key = number()
        form = key & 7
        if form not in (VARINT, FIXED64, BYTES, FIXED32):
            raise ValueError(f"field {key >> 3} is a group")
        if form == VARINT:
            yield (key >> 3, form), number()
            continue
        size = number() if form == BYTES else {FIXED32: 4, FIXED64: 8}[form]
        value, place = data[place : place + size], place + size
        yield (key >> 3, form), struct.unpack("<f", value)[0] if form == FIXED32 else value
