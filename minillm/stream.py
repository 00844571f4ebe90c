"""Stream: a generation as it runs, and the record of one that has run."""

import time
from collections.abc import Generator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from .generate import Plan, compile_prefill, compile_step, generate_tokens
from .model import Model
from .output import Output
from .sampling import Sampler
from .xla import Programs, in_background

if TYPE_CHECKING:
    from .speculative import Drafter


class Language(Protocol):
    """What a stream needs of an `LM`."""

    shapes: Model
    weights: Future[Model]

    @property
    def model(self) -> Model: ...


@dataclass(frozen=True)
class Completion:
    """What was generated: the continuation only.

    finish_reason is `stop` (the model or a stop string ended it), `length` (max_tokens or the context did) or
    `interrupted` (the reader stopped reading). timings: ttft_s, prefill_tok_s, decode_tok_s, compile_s; rates
    leave compile time out, and are None where nothing was measured. A program's first run still sets things up,
    so prefill is slower in a fresh process; compile_s includes loading programs from disk. speculation is
    `Record.summary` of a generation with a drafter, empty without.
    """

    text: str
    tokens: list[int]
    prompt_tokens: int
    finish_reason: str
    timings: dict[str, float | None]
    seed: int
    speculation: dict[str, Any]


class Stream:
    """A running generation: iterate over it for text, then ask for its `completion()`.

    Stopping early is fine; the completion then says `interrupted`.
    """

    def __init__(
        self,
        lm: Language,
        plan: Plan,
        sampler: Sampler,
        output: Output,
        drafter: "Drafter | None" = None,
        exact: bool = False,
    ):
        self.lm, self.plan, self.sampler, self.output = lm, plan, sampler, output
        self.drafter, self.exact, self.record = drafter, exact, None
        self.timings: dict[str, float | None] = {}
        self.pieces = self._run()
        self.ready: str | None = None

    def wait(self) -> None:
        """Return once the first piece is there: the prompt is read."""
        if self.ready is None and not self.output.tokens:
            self.ready = next(self.pieces, "")

    def close(self) -> None:
        """End the generation here."""
        self.pieces.close()

    def __iter__(self) -> Iterator[str]:
        if self.ready is not None:
            first, self.ready = self.ready, None
            yield first
        yield from self.pieces

    def completion(self) -> Completion:
        """The record of what has been generated so far."""
        out, speculation = self.output, self.record.summary() if self.record else {}
        reason, seed = out.finish_reason or "interrupted", int(self.sampler.seed[0])
        return Completion(out.text, out.tokens, len(self.plan.prompt), reason, self.timings, seed, speculation)

    def _run(self) -> Generator[str]:
        for token in self._timed_tokens():
            yield self.output.push(token)
            if self.output.finish_reason is not None:
                return
        yield self.output.end("length")

    def _tokens(self, model: Model) -> Iterator[int]:
        """The tokens, by the loop that the options ask for."""
        plan = self.plan
        if self.drafter is None and not self.exact:
            return generate_tokens(model, plan, self.sampler)
        from .speculative.decode import generate_exactly, speculate
        from .speculative.pace import Pace
        from .speculative.record import Record

        self.record = Record()
        if self.exact:
            return generate_exactly(model, plan, self.sampler, self.drafter, self.record)
        assert self.drafter is not None
        return speculate(model, plan, self.sampler, self.drafter, Pace(), self.record)

    def _timed_tokens(self) -> Iterator[int]:
        """The tokens; timings are brought up to date before each is handed on, the reader's own time left out."""
        lm, plan = self.lm, self.plan
        started, n, decoding, prefill, waited, step_compiled = time.perf_counter(), 0, 0.0, 0.0, 0.0, None
        with Programs() as programs:
            if not lm.weights.done() and not self.exact:
                compile_prefill(lm.shapes, plan, self.sampler)
                step_compiled = in_background(compile_step, lm.shapes, plan, self.sampler)
            tokens = self._tokens(lm.model)
            while True:
                before, compiled = time.perf_counter(), programs.seconds
                if n == 1 and step_compiled:
                    step_compiled.result()
                    waited = time.perf_counter() - before
                    before += waited
                token = next(tokens, None)
                if token is None:
                    return
                now, n = time.perf_counter(), n + 1
                took = now - before - (programs.seconds - compiled)
                if n == 1:
                    self.timings["ttft_s"], prefill = now - started, took
                else:
                    decoding += took
                self.timings["prefill_tok_s"] = len(plan.prompt) / prefill
                self.timings["decode_tok_s"] = (n - 1) / decoding if n > 1 else None
                self.timings["compile_s"] = programs.seconds + waited
                yield token
