"""A text as it is generated: tokens go in, pieces of text come out, until something ends it."""

from collections.abc import Iterable, Sequence

from .errors import UserError
from .stops import StopFilter
from .tokenizer import Tokenizer


class Output:
    """What was generated: its tokens and its text, each without what ended it.

    ends are the tokens that end it, stop the strings; UserError if one of these is none. finish_reason is None as
    long as it goes on.
    """

    def __init__(self, tokenizer: Tokenizer | None, ends: Iterable[int], stop: str | Sequence[str]):
        stop = tuple(stop) if isinstance(stop, Sequence) and not isinstance(stop, str) else (stop,)
        if stop and tokenizer is None:
            raise UserError("stop strings need a tokenizer, and this checkpoint has none")
        if not all(isinstance(one, str) and one for one in stop):
            raise UserError("a stop string is empty or no string, expected at least one character")
        self.decoded, self.ends = tokenizer.stream() if tokenizer else None, set(ends)
        self.stops = StopFilter(stop)
        self.tokens: list[int] = []
        self.text = ""
        self.finish_reason: str | None = None

    def push(self, token: int) -> str:
        """The text that a token completes."""
        if token in self.ends:
            return self.end("stop")
        self.tokens.append(token)
        piece = self.stops.push(self.decoded.push(token)) if self.decoded else ""
        if self.stops.hit:
            self.finish_reason = "stop"
        self.text += piece
        return piece

    def end(self, reason: str) -> str:
        """No more tokens come, for this reason; the text that was held back."""
        tail = self.stops.push(self.decoded.flush()) if self.decoded else ""
        self.finish_reason = "stop" if self.stops.hit else reason
        tail += self.stops.flush()
        self.text += tail
        return tail
