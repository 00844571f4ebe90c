"""Fair timing of several programs on one machine: each in a process of its own, taking turns.

In one process their thread pools get in each other's way: merely importing torch cost llama.cpp a third of its
speed. Waiting for a turn, none of them was seen to use the CPU; if one did, it would count as disturbance.
Machines drift and other programs come and go, so turns are short, rounds rotate the order, and what counts is
the ratio within a round.
"""

import math
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

# prompt (or several), n -> n + 1 tokens of each, and the seconds of the last n
Decode = Callable[[Any, int], tuple[list[int], float]]

QUIET = 0.03  # a turn counts when other programs took less than this share of the machine meanwhile
TRIES = 8  # but after so many the quietest is taken
MOST_WAIT = 60.0  # seconds to wait for quiet before a turn


class Turn(NamedTuple):
    """What a contestant did in one turn; `others` is the share of the machine that other programs took."""

    tokens: Any
    seconds: float
    others: float


@dataclass(frozen=True)
class Round:
    """One turn of each contestant by name, and the memory bandwidth just before, in bytes a second."""

    turns: dict[str, Turn]
    bandwidth: float


class Contestant:
    """A decoder in a process of its own; `opened` makes it there, and it tries itself on `warm_up`."""

    def __init__(self, opened: Callable[[], Callable[..., Any]], warm_up: tuple[Any, Any] = ([0], 8)):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(opened, warm_up, theirs), daemon=True)
        self.process.start()
        theirs.close()  # so that the pipe ends, and recv raises, if the process dies

    def __enter__(self) -> "Contestant":
        self.pipe.recv()  # it is ready
        return self

    def __exit__(self, *exception) -> None:
        self.process.kill()  # it may be in the middle of a turn

    def decode(self, prompt: Any, n: Any, tries: int = TRIES) -> Turn:
        """Decode n + 1 tokens while nothing else runs: the first quiet turn, or the quietest of a few.

        A disturbed turn says little: one busy neighbour costs a program whose threads wait for each other
        after every layer ten times more than one that does not. Prompt and n are whatever the decoder takes.
        """
        turns: list[Turn] = []
        while len(turns) < tries and not (turns and turns[-1].others < QUIET):
            wait_for_quiet()
            turns.append(self._turn(prompt, n))
        return min(turns, key=lambda turn: turn.others)

    def resident_gb(self) -> float:
        """The memory that the process has now; NaN where the system does not say (not Linux)."""
        status = Path(f"/proc/{self.process.pid}/statm")
        pages = int(status.read_text().split()[1]) if status.exists() else math.nan
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e9

    def _turn(self, prompt: Any, n: Any) -> Turn:
        started, busy_before = time.perf_counter(), busy_seconds()
        self.pipe.send((prompt, n))
        tokens, seconds, own = self.pipe.recv()
        elapsed, busy = time.perf_counter() - started, busy_seconds() - busy_before
        return Turn(tokens, seconds, max(busy - own, 0) / elapsed / (os.cpu_count() or 1))


def serve(opened: Callable[[], Callable[..., Any]], warm_up: tuple[Any, Any], pipe: Any) -> None:
    """The life of a contestant's process: decode what is asked for, and add the CPU seconds it took."""
    decode = opened()
    decode(*warm_up)  # whatever is compiled or allocated on first use
    pipe.send("ready")
    while True:
        prompt, n = pipe.recv()
        own = time.process_time()
        tokens, seconds = decode(prompt, n)
        pipe.send((tokens, seconds, time.process_time() - own))


def busy_seconds() -> float:
    """CPU seconds that all programs on this machine have used; 0 where the system does not say (not Linux)."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, stat.read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def wait_for_quiet() -> None:
    """Wait until other programs leave the machine alone, but not for ever."""
    deadline, pause = time.perf_counter() + MOST_WAIT, 0.3
    while time.perf_counter() < deadline:
        before = busy_seconds()
        time.sleep(pause)
        if busy_seconds() - before <= 2 * QUIET * pause * (os.cpu_count() or 1):  # clock ticks are coarse
            return


def rotated(names: Sequence[T], by: int) -> list[T]:
    """Names in the order of round `by`: everyone goes first equally often."""
    by %= len(names)
    return [*names[by:], *names[:by]]
