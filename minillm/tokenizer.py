"""Tokenizer: text to token ids and back, with the `tokenizers` or the `sentencepiece` library doing the work."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

import tokenizers

from .chat import Message, in_a_line, render_chat
from .errors import UserError

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

# Control tokens that end a text or a turn, whether or not a checkpoint says so in its metadata.
END_TOKENS = ("<|endoftext|>", "<|im_end|>", "<|end_of_text|>", "<|eot_id|>", "<end_of_turn>", "</s>")

# What looks like a control token, and so is one: many files have those of turns among the words that users added,
# and then any message could write them. llama.cpp does the same for tokens that end a turn.
MARK = re.compile(r"<[|｜].+[|｜]>|<(start|end)_of_turn>|</?s>", re.DOTALL)

# Byte-level vocabularies spell bytes as letters: those that print as themselves, the others as letters from 256 on.
PRINTING = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHERS = [byte for byte in range(256) if byte not in PRINTING]
LETTERS = {chr(byte): byte for byte in PRINTING} | {chr(256 + i): byte for i, byte in enumerate(OTHERS)}

Result = TypeVar("Result")


def is_mark(token: str) -> bool:
    """Whether a token can only be a control token, by its name."""
    return MARK.fullmatch(token) is not None


def asked(call: Callable[[], Result], complaint: str) -> Result:
    """What the `tokenizers` library answers; UserError with a complaint if it cannot."""
    try:
        return call()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises nothing narrower, and a panic of its own is no Exception
        raise UserError(f"{complaint}: {in_a_line(str(error))}") from None


@dataclass(frozen=True)
class Bytes:
    """Byte-level pairs, by the `tokenizers` library; `where` they are from is for messages."""

    library: tokenizers.Tokenizer
    where: str
    lock: Lock = field(default_factory=Lock)

    @cached_property
    def added(self) -> dict[int, tokenizers.AddedToken]:
        """The tokens that are found as they stand, before anything is cut or merged."""
        return self.library.get_added_tokens_decoder()

    @cached_property
    def controls(self) -> dict[str, int]:
        """The ids of the control tokens, by name; no text gives them but their own names."""
        return {token.content: i for i, token in self.added.items() if token.special}

    def encode(self, text: str, recognise: bool, affixes: bool) -> list[int]:
        """Ids of text; control tokens in it are recognised as such, and others added around it, or not."""
        with self.lock:  # the setting belongs to the library's object, not to the call
            self.library.encode_special_tokens = not recognise
            return self._asked(lambda: self.library.encode(text, add_special_tokens=affixes).ids)

    def decode(self, ids: list[int]) -> str:
        """The text, control tokens spelled out."""
        return self._asked(lambda: self.library.decode(ids, skip_special_tokens=False))

    def vocabulary(self) -> dict[str, int]:
        """The ids of all tokens, by name."""
        return self.library.get_vocab()

    def bytes_of(self, token: int) -> bytes:
        """What a token stands for; nothing if there is no such token."""
        if token in self.added:
            return self.added[token].content.encode()
        name = self.library.id_to_token(token) or ""
        return bytes(LETTERS[letter] for letter in name) if LETTERS.keys() >= {*name} else name.encode()

    def _asked(self, call: Callable[[], Result]) -> Result:
        return asked(call, f"{self.where}: the tokenizer failed")


@dataclass(frozen=True)
class Pieces:
    """The same with pieces of words, by the `sentencepiece` library; it adds nothing around a text."""

    library: "SentencePieceProcessor"

    @cached_property
    def controls(self) -> dict[str, int]:
        ids = range(self.library.GetPieceSize())
        return {self.library.IdToPiece(i): i for i in ids if self.library.IsControl(i)}

    @cached_property
    def names(self) -> re.Pattern[str]:
        """Any control token's name, the longest where one begins another."""
        return re.compile(f"({'|'.join(map(re.escape, sorted(self.controls, key=len, reverse=True)))})")

    def encode(self, text: str, recognise: bool, affixes: bool) -> list[int]:
        if not recognise or not self.controls:
            return self.library.EncodeAsIds(text)
        parts = self.names.split(text)
        coded = ([self.controls[p]] if p in self.controls else self.library.EncodeAsIds(p) for p in parts if p)
        return [token for part in coded for token in part]

    def decode(self, ids: list[int]) -> str:
        known = [i for i in ids if 0 <= i < self.library.GetPieceSize()]  # a model may have room for more
        runs = groupby(known, key=lambda i: self.library.IdToPiece(i) if self.library.IsControl(i) else "")
        return "".join(name * len([*run]) if name else self.library.DecodeIds([*run]) for name, run in runs)

    def vocabulary(self) -> dict[str, int]:
        return {self.library.IdToPiece(i): i for i in range(self.library.GetPieceSize())}

    def bytes_of(self, token: int) -> bytes:
        if not 0 <= token < self.library.GetPieceSize():
            return b""
        name = self.library.IdToPiece(token)
        return bytes([int(name[1:-1], 16)]) if self.library.IsByte(token) else name.replace("▁", " ").encode()


Backend = Bytes | Pieces


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary with its special tokens.

    chat_template is the checkpoint's Jinja source or None; bos and eos are the texts of those tokens, as the
    template sees them; ends are the ids at which generation stops; prefix is put before every text and suffix after
    it, unless the backend does so itself.
    """

    backend: Backend = field(repr=False)
    bos: str = ""
    eos: str = ""
    ends: tuple[int, ...] = ()
    chat_template: str | None = field(default=None, repr=False)
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of text.

        special=True does as the checkpoint's own tokenizer: `<|im_end|>` in the text is that token, and a BOS
        is added where the model wants one. special=False takes every character as plain text. Bytes that the
        vocabulary has no token for are dropped, as the original does (SmolLM2 lacks 21, control characters).
        """
        return self._encode(text, recognise=special, affixes=special)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, up to where the assistant speaks; UserError without a template.

        Control tokens count where the template wrote them; those that a message spells are text like any other.
        """
        parts = self._rendered(messages)
        ids = self._encode("".join(parts), recognise=True, affixes=False)  # the template writes its own BOS
        if self._agree(ids, parts):
            return ids
        harmless = self._rendered([Message(role=message["role"], content="a") for message in messages])
        if not self._agree(self._encode("".join(harmless), recognise=True, affixes=False), harmless):
            raise UserError("the checkpoint's chat template makes control tokens out of pieces, in no known way")
        coded = (
            [self.backend.controls[part]] if place % 2 else self._encode(part, recognise=False, affixes=False)
            for place, part in enumerate(parts)
        )
        return [token for part in coded for token in part]

    def _rendered(self, messages: Sequence[Message]) -> list[str]:
        """A conversation as text, control token, text, …, text."""
        if self.chat_template is None:
            raise UserError("this checkpoint has no chat template; generate without --chat")
        return render_chat(self.chat_template, messages, self.bos, self.eos, self.backend.controls)

    def _agree(self, ids: Sequence[int], parts: Sequence[str]) -> bool:
        """Whether the control tokens among ids are those of a rendered conversation and no others."""
        controls = self.backend.controls
        known = {*controls.values()}
        return [token for token in ids if token in known] == [controls[name] for name in parts[1::2]]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids, special tokens spelled out; bytes that are not UTF-8 become U+FFFD."""
        return self.backend.decode(list(ids))

    def stream(self) -> "TextStream":
        """A decoder that takes ids one at a time."""
        return TextStream(self)

    def _encode(self, text: str, recognise: bool, affixes: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"text has a lone surrogate at character {error.start}, expected Unicode") from None
        ids = self.backend.encode(text, recognise, affixes)
        return [*self.prefix, *ids, *self.suffix] if affixes else ids


class TextStream:
    """Decodes one token at a time; never gives out half a character.

    The pieces joined, and what `flush` returns, are `tokenizer.decode` of all ids. A few ids of context stay in
    the window, because how a token reads can depend on the one before it.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer, self.ids = tokenizer, []
        self.context = self.given = 0  # the window starts at `context`; ids before `given` were given out

    def push(self, token: int) -> str:
        """The text that this token completes, often one word, sometimes nothing yet."""
        self.ids.append(token)
        return self._new_text(hold=True)

    def flush(self) -> str:
        """What was held back."""
        return self._new_text(hold=False)

    def _new_text(self, hold: bool) -> str:
        window = self.tokenizer.decode(self.ids[self.context :])
        if hold and window.endswith("\N{REPLACEMENT CHARACTER}"):  # perhaps a character cut in two
            return ""
        old = self.tokenizer.decode(self.ids[self.context : self.given])
        self.context, self.given = self.given, len(self.ids)
        return window[len(old) :]
