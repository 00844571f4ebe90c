"""A request to the engine: what is to be continued, how far it has come, and the text so far."""

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from .output import Output
from .sampling import Sampler

if TYPE_CHECKING:
    from .speculative import Drafter


class Server(Protocol):
    """What a request asks of its engine."""

    def step(self) -> bool: ...
    def end(self, request: "Request", reason: str) -> None: ...


class Request:
    """One sequence in an `Engine`: iterate over it for text as it comes, or `cancel` it.

    text      its tokens, the prompt's and the generated ones; the first `known` of them are in memory
    slot      its row of the batch, None while it waits; pages: those that hold its rows
    end       tokens that it may have at most
    preempted how often it lost its place; shared: how many tokens it did not have to read when it last got one
    deadline  by `time.monotonic`, None: it may take as long as it takes
    error     what was raised while its text was decoded or drafted, if that is how it ended
    """

    def __init__(
        self,
        engine: Server,
        prompt: list[int],
        sampler: Sampler,
        end: int,
        output: Output,
        drafter: "Drafter | None",
        timeout: float | None,
    ):
        self.engine, self.prompt, self.sampler, self.end, self.output = engine, prompt, sampler, end, output
        self.drafter, self.deadline = drafter, None if timeout is None else time.monotonic() + timeout
        self.text, self.known = list(prompt), 0
        self.slot: int | None = None
        self.pages: list[int] = []
        self.pieces: list[str] = []
        self.error: Exception | None = None
        self.preempted = self.shared = 0

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.output.finish_reason is not None

    @property
    def decodes(self) -> bool:
        """Whether all its text but the last token is in memory."""
        return len(self.text) - self.known == 1

    @property
    def finish_reason(self) -> str | None:
        """stop, length, cancelled, timeout or error; None while it goes on."""
        return self.output.finish_reason

    @property
    def tokens(self) -> list[int]:
        """What was generated so far, without the token that ended it."""
        return self.output.tokens

    def cancel(self) -> None:
        """End it here; its memory is free at once."""
        self.engine.end(self, "cancelled")

    def wait(self) -> "Request":
        """Let the engine run until this one has ended; raises what was raised in it."""
        for _ in self:
            pass
        return self

    def __iter__(self) -> Iterator[str]:
        """Pieces of text as they come; the engine runs, for all its requests, whenever there is none."""
        while self.pieces or not self.done:
            if not self.pieces:
                self.engine.step()
            while self.pieces:
                yield self.pieces.pop(0)
        if self.error is not None:
            raise self.error

    def take(self, new: Sequence[int]) -> None:
        """New tokens; those behind the one that ends it are forgotten."""
        for token in new:
            self.text.append(token)
            piece = self.output.push(token)
            if not self.done and len(self.text) >= self.end:
                piece += self.output.end("length")
            if piece:
                self.pieces.append(piece)
            if self.done:
                return
