"""A file of prompts through the engine: JSON lines in, JSON lines out, in the same order.

What has ended is written beside the output at once (OUTPUT.part), so a run that was killed goes on where it was.
The programs have the same shapes whoever else is there, so what is said does not depend on when that happened.
"""

import json
import os
import secrets
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .checkpoint.download import alone
from .config import shown
from .engine import Engine
from .errors import UserError
from .folders import whole
from .request import Request
from .sampling import is_count, new_sampler, require

if TYPE_CHECKING:
    from .lm import LM

Encode = Callable[[str], list[int]]
Item = TypeVar("Item")
Result = TypeVar("Result")

NAMED = 3  # lines that are wrong are named at most

OPTIONS = {
    "max_tokens",
    "stop",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
}


class Job:
    """The prompts of a file and where their continuations go; `lines` are what an engine is asked for.

    A line is a string, or an object with a `prompt` and any of OPTIONS, which go before those given here
    (max_tokens must be). Line i without a seed of its own uses the one given, or drawn for the file, plus i.
    serving are options of the `Engine`; `whose` is what else decides what is said, the model for one. The source -
    is standard input.
    """

    def __init__(self, source: Path, target: Path, whose: Any, options: dict[str, Any], serving: dict[str, Any]):
        if not target.name:
            raise UserError(f"the output is {str(target)!r}, expected the name of a file")
        self.target, self.part = target, target.with_name(target.name + ".part")
        self.name, raw = str(source), read(source)
        options = dict(options)
        self.seed = options.pop("seed", None)
        if self.seed is not None:
            new_sampler(seed=self.seed)
        asked = json.dumps([whose, serving, options, self.seed], sort_keys=True)
        self.job = sha256(raw + asked.encode()).hexdigest()[:16]
        lines = raw.splitlines()
        if not lines:
            raise UserError(f"{self.name}: no prompts, expected one JSON value a line")
        self.lines = self.each(lines, lambda line: parsed(line, options))
        self.serving = serving | {"max_batch": min(serving["max_batch"], len(self.lines))}

    def each(self, items: Iterable[Item], function: Callable[[Item], Result]) -> list[Result]:
        """What a function makes of something of every line; UserError names the first lines that it finds wrong."""
        made, wrong = [], []
        for number, one in enumerate(items, 1):
            try:
                made.append(function(one))
            except UserError as error:
                wrong.append(f"line {number}: {error}")
        if wrong:
            more = f"; and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
            raise UserError(f"{self.name}, {'; '.join(wrong[:NAMED])}{more}")
        return made

    @property
    def finished(self) -> bool:
        """Whether the output is there, whole, and of this very job."""
        if not self.target.is_file() or self.part.exists():
            return False
        lines = self.target.read_bytes().splitlines()
        try:
            return len(lines) == len(self.lines) and json.loads(lines[0])["job"] == self.job
        except (ValueError, TypeError, KeyError):
            return False

    def run(self, lm: "LM", encode: Encode) -> Generator[dict[str, Any]]:
        """Do what is not done yet, yielding each result; at the end the output is there, whole.

        encode makes token ids of a prompt.
        """
        with self.opened() as (file, seed, done):
            wanted = [{"seed": (seed + i) % 2**32, **line} for i, line in enumerate(self.lines)]
            prompts = self.each([one.pop("prompt") for one in wanted], encode)
            longest = max(len(ids) + one["max_tokens"] for ids, one in zip(prompts, wanted, strict=True))
            engine = Engine(lm, context=longest, steady=True, **self.serving)
            asked = zip(prompts, wanted, strict=True)
            requests = dict(enumerate(self.each(asked, lambda one: engine.submit(one[0], **one[1]))))
            for i in done:  # it was submitted to see that all lines are in order
                requests.pop(i).cancel()
            yield from done.values()
            while requests:
                engine.step()
                for i in [i for i, request in requests.items() if request.done]:
                    done[i] = result(i, requests.pop(i), wanted[i]["seed"])
                    if not file.tell():
                        file.write(as_line({"job": self.job, "seed": seed}))
                    file.write(as_line(done[i]))
                    file.flush()
                    yield done[i]
            self.finish([done[i] for i in range(len(wanted))])

    @contextmanager
    def opened(self) -> Iterator[tuple[Any, int, dict[int, dict[str, Any]]]]:
        """The file of results so far, the seed of the job, and the results by line.

        UserError if it belongs to another job, another run is writing it, or the output is there already.
        """
        if self.target.exists() and not self.part.exists():
            raise self.already_there()
        busy = f"{self.part} is being written by another run; wait for it, or name another output"
        with naming(self.part), alone(self.part, busy) as file:
            file.seek(0)
            lines, cut, _ = file.read().rpartition(b"\n")  # the last may have been cut off
            file.truncate(len(lines) + len(cut))
            file.seek(0, os.SEEK_END)
            seed, results = self.understood(lines.split(b"\n")) if cut else (self.seed, [])
            if self.target.exists() and len(results) < len(self.lines):  # else it was killed at the very end
                raise self.already_there()
            try:
                yield file, secrets.randbits(32) if seed is None else seed, {one["line"]: one for one in results}
            finally:
                if not file.tell():  # nothing was done
                    self.part.unlink(missing_ok=True)

    def understood(self, lines: list[bytes]) -> tuple[int, list[dict[str, Any]]]:
        """The seed and the results in the lines of the file; UserError if it is not of this job."""
        try:
            header, *results = [json.loads(line) for line in lines]
            if header["job"] == self.job:
                return header["seed"], results
        except (ValueError, TypeError, KeyError):
            pass
        raise UserError(
            f"{self.part} is what is left of another job: prompts, model or options differ, --batch among them; "
            "move it away, or name another output"
        )

    def already_there(self) -> UserError:
        """That the output exists."""
        return UserError(f"{self.target} is there already; move it away, or name another output")

    def finish(self, results: list[dict[str, Any]]) -> None:
        """Put the results in order where the output belongs, in one go."""
        with whole(self.target) as draft, open(draft, "wb") as file:
            for one in results:
                said = {name: value for name, value in one.items() if name != "line"}
                file.write(as_line(said | {"job": self.job}))
        self.part.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an OSError say where it happened: a disk that is full does not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def read(source: Path) -> bytes:
    """The lines of a file, or of standard input if it is -; UserError if that is closed."""
    if str(source) != "-":
        return source.read_bytes()
    if sys.stdin is None:
        raise UserError("standard input is closed; name a file with prompts")
    return sys.stdin.buffer.read()


def parsed(line: bytes, options: dict[str, Any]) -> dict[str, Any]:
    """What a line asks for; UserError if that is nothing."""
    expected = 'expected "a prompt", in quotes, or {"prompt": …}'
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError(f"no JSON, {expected}") from None
    value = {"prompt": value} if isinstance(value, str) else value
    if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
        raise UserError(f"no prompt, {expected}")
    unknown = sorted(set(value) - OPTIONS - {"prompt"})
    if unknown:
        raise UserError(f"{shown(unknown[0])} is no option, expected prompt and {', '.join(sorted(OPTIONS))}")
    truths = [name for name, one in value.items() if isinstance(one, bool)]
    if truths:
        raise UserError(f"{truths[0]} is {str(value[truths[0]]).lower()}, expected no true or false")
    asked = {**options, **{name: one for name, one in value.items() if one is not None}}
    require(is_count(asked["max_tokens"]), "max_tokens", asked["max_tokens"], "1 or more")
    return asked


def as_line(value: dict[str, Any]) -> bytes:
    """A line of JSON."""
    return (json.dumps(value, ensure_ascii=False) + "\n").encode()


def result(line: int, request: Request, seed: int) -> dict[str, Any]:
    """What is written about a request that has ended."""
    if request.error is not None:
        raise request.error
    out, prompt = request.output, request.prompt
    return {
        "line": line,
        "text": out.text,
        "tokens": out.tokens,
        "prompt_tokens": len(prompt),
        "finish_reason": out.finish_reason,
        "seed": seed,
    }
