"""Tokenizer: text to token ids and back, with the `tokenizers` library doing the work."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from threading import Lock

import tokenizers

from .chat import Message, render_chat
from .errors import UserError

# Control tokens that end a text or a turn, whether or not a checkpoint says so in its metadata.
END_TOKENS = ("<|endoftext|>", "<|im_end|>", "<|end_of_text|>", "<|eot_id|>", "<end_of_turn>", "</s>")


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary with its special tokens.

    chat_template is the checkpoint's Jinja source or None; bos and eos are the texts of those tokens, as the
    template sees them; ends are the ids at which generation stops; prefix is put before every text, unless the
    backend does so itself.
    """

    backend: tokenizers.Tokenizer = field(repr=False)
    bos: str = ""
    eos: str = ""
    ends: tuple[int, ...] = ()
    chat_template: str | None = field(default=None, repr=False)
    prefix: tuple[int, ...] = ()
    lock: Lock = field(default_factory=Lock, repr=False)

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of text.

        special=True does as the checkpoint's own tokenizer: `<|im_end|>` in the text is that token, and a BOS
        is added where the model wants one. special=False takes every character as plain text. Bytes that the
        vocabulary has no token for are dropped, as the original does (SmolLM2 lacks 21, control characters).
        """
        return self._encode(text, recognise=special, affixes=special)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, up to where the assistant speaks; UserError without a template."""
        if self.chat_template is None:
            raise UserError("this checkpoint has no chat template; generate without --chat")
        text = render_chat(self.chat_template, messages, bos=self.bos, eos=self.eos)
        return self._encode(text, recognise=True, affixes=False)  # the template writes its own BOS

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids, special tokens spelled out; bytes that are not UTF-8 become U+FFFD."""
        return self.backend.decode(list(ids), skip_special_tokens=False)

    def stream(self) -> "TextStream":
        """A decoder that takes ids one at a time."""
        return TextStream(self)

    def _encode(self, text: str, recognise: bool, affixes: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"text has a lone surrogate at character {error.start}, expected Unicode") from None
        with self.lock:  # the setting belongs to the backend, not to the call
            self.backend.encode_special_tokens = not recognise
            ids = self.backend.encode(text, add_special_tokens=affixes).ids
        return [*self.prefix, *ids] if affixes else ids


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
