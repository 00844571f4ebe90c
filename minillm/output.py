"""A text as it is generated: tokens go in, pieces of text come out, until something ends it."""

from collections.abc import Iterable, Sequence

from .stops import StopFilter
from .tokenizer import Tokenizer


class Output:
    """What was generated: its tokens and its text, each without what ended it.

    ends are the tokens that end it, stop the strings. finish_reason is None as long as it goes on.
    """

    def __init__(self, tokenizer: Tokenizer | None, ends: Iterable[int], stop: Sequence[str]):
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
