"""Continuous batching: requests come and go, and every step of the model serves all that are there.

A decoding step reads every weight, for one sequence or for sixteen. So sequences are decoded together, each in
a row of the batch, and as soon as one has ended the next takes its row (Yu et al. 2022, "Orca"). What they
remember lies in pages, so that memory is used up by tokens and not by what they might become (Kwon et al. 2023,
arXiv:2309.06180).

One iteration is two programs (runner.py). `read` takes in a chunk of the prompts of up to two requests, so that
a long one holds up nobody; `verify` goes on with all the others by a token, or by several where they have a
drafter. A text that begins like one before it shares its pages (cache/prefix.py). When pages run out, the
youngest request gives its own back and later reads its text again. What a request says depends on its prompt
and seed, not on who else is there: the draw at a position has its own random numbers. Only near-ties may fall
another way, as the rounding of a sum depends on the shape of the program; `steady` and `exact` are for that.
"""

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from inspect import signature
from typing import TYPE_CHECKING, Any, Protocol

import jax

from .cache import StateSpec
from .cache.pool import PagePool
from .cache.prefix import Node, PrefixTree, all_paged
from .config import Config
from .errors import UserError
from .output import Output
from .request import Request
from .runner import Runner
from .sampling import is_count, new_sampler, require
from .speculative import Tree
from .speculative.decode import EXACT, drafted_by

if TYPE_CHECKING:
    from .speculative import Drafter
    from .tokenizer import Tokenizer

CHUNK = 128  # tokens of a prompt that are read at once
WIDTHS = (CHUNK // 4, CHUNK // 2, CHUNK)  # of the programs that read them
READERS = 2  # requests that read at once
SAMPLING = signature(new_sampler).parameters.keys()
DRAFTS = (0, 3, EXACT - 1)  # drafted tokens a round; each is a program of its own


class Language(Protocol):
    """What the engine needs of an `LM`."""

    config: Config
    tokenizer: "Tokenizer | None"

    @property
    def model(self) -> Any: ...
    @property
    def ends(self) -> set[int]: ...
    def memory(self, cache: str | None, lossy: bool) -> StateSpec: ...
    def longest(self, memory: StateSpec) -> int: ...
    def drafter(self, draft: "str | Drafter | None") -> "Drafter | None": ...
    def prompt_ids(self, prompt: str | Sequence[int], context: int | None) -> list[int]: ...


class Engine:
    """Serves up to max_batch requests at once with a model; the others wait in line.

    context   tokens that a request may have, the prompt's and the generated ones
    n_pages   of page_size tokens each, shared by all; None: as many as max_batch whole contexts need
    kind      "contiguous" gives each row of the batch a whole context instead
    cache     as in `LM.stream`; all but int8 and fp8 take the place of pages. What h2o forgets depends on who
              else is there, so it needs `lossy`
    share     whether texts that begin alike share pages
    steady    rounding does not depend on who else is there: without drafts, and as long as nobody loses its pages,
              the same bits in any company. Texts then share only whole chunks of their prompts
    exact     everything in one program of one shape: tokens are the same to the bit whoever else is there,
              whatever is drafted and however often a text is read again; slower
    """

    def __init__(
        self,
        lm: Language,
        *,
        max_batch: int = 8,
        n_pages: int | None = None,
        page_size: int = 16,
        context: int = 1024,
        kind: str = "paged",
        cache: str | None = None,
        lossy: bool = False,
        share: bool = True,
        steady: bool = False,
        exact: bool = False,
    ):
        require(kind in ("paged", "contiguous"), "kind", kind, "paged or contiguous")
        counts = {"max_batch": max_batch, "page_size": page_size, "context": context, "n_pages": n_pages}
        for name, count in counts.items():
            require(is_count(count) or (name == "n_pages" and count is None), name, count, "1 or more")
        memory = lm.memory(cache, lossy)
        self.context = min(context, lm.longest(memory))
        each = -(-self.context // page_size)
        self.pool = PagePool(n_pages or max_batch * each, page_size)
        self.spec = replace(memory.for_at_most(self.context), slots=max_batch, max_len=self.context)
        if kind == "paged" and memory.kind == "contiguous":
            self.spec = replace(self.spec, kind="paged", page_size=page_size, n_pages=self.pool.n_pages)
        require(n_pages is None or self.spec.kind == "paged", "n_pages", n_pages, "none: this memory has no pages")
        self.lm, self.exact, self.steady = lm, exact, steady or exact
        self.runner = Runner(lm.model, self.spec, lm.config.v, self.steady)
        self.prefixes, self.shares = PrefixTree(self.pool), share and self.spec.kind == "paged"
        self.snapshots = not all_paged(self.runner.state)
        self.by_chunk = (steady and not exact) or self.snapshots
        self.step_size = math.lcm(CHUNK, page_size) if self.by_chunk else page_size
        self.waiting: deque[Request] = deque()
        self.rows: list[Request | None] = [None] * max_batch
        self.order: list[Request] = []  # those in rows, the oldest first

    def submit(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = 128,
        stop: str | Sequence[str] = (),
        draft: "str | Drafter | None" = None,
        timeout: float | None = None,
        **sampling: Any,
    ) -> Request:
        """Put a request in line; sampling as in `LM.stream`. UserError if it does not fit, now or ever."""
        if unknown := sampling.keys() - SAMPLING:
            raise UserError(
                f"submit: {min(unknown)} is no option of a request, expected {', '.join(sorted(SAMPLING))}"
            )
        ids, sampler = self.lm.prompt_ids(prompt, self.context), jax.device_get(new_sampler(**sampling))
        require(is_count(max_tokens), "max_tokens", max_tokens, "1 or more")
        seconds = timeout is None or (isinstance(timeout, int | float) and timeout > 0)
        require(seconds, "timeout", timeout, "seconds, more than 0")
        end = min(len(ids) + max_tokens, self.context)
        needed = self.pool.pages_for(end)
        if needed > self.pool.n_pages:
            raise UserError(
                f"the request needs {needed} pages for {end} tokens, but there are {self.pool.n_pages}; "
                "ask for fewer tokens, or give the engine more pages"
            )
        output = Output(self.lm.tokenizer, self.lm.ends, stop)
        request = Request(self, ids, sampler, end, output, self.lm.drafter(draft), timeout)
        self.waiting.append(request)
        return request

    def step(self) -> bool:
        """One iteration; False if there was nothing to do."""
        self.expire()
        self.admit()
        if not self.order:
            return False
        if self.exact:
            self.decode([*self.order])
            return True
        readers = [request for request in self.order if not request.decodes]
        if readers:
            self.read_prompts(readers)
        decoders = [request for request in self.order if request not in readers]
        if decoders:
            self.decode(decoders)
        return True

    def run(self) -> None:
        """Go on until all requests have ended."""
        while self.step():
            pass

    def end(self, request: Request, reason: str) -> None:
        """End a request, wherever it is; nothing happens to one that has ended."""
        if not request.done:
            tail = request.output.end(reason)
            request.pieces += [tail] if tail else []
        self.release(request)
        if request in self.waiting:
            self.waiting.remove(request)

    def release(self, request: Request) -> None:
        """Take a request's row and pages away, and with them all that was in memory."""
        if self.shares and not self.by_chunk:
            self.prefixes.insert(request.text[: request.known], request.pages)
        self.pool.take_back(request.pages)
        if request.slot is not None:
            self.rows[request.slot] = None
            self.order.remove(request)
        request.slot, request.known = None, 0

    def fail(self, request: Request, error: Exception) -> None:
        """End a request in which something was raised; the others go on."""
        request.error = error
        self.end(request, "error")

    def expire(self) -> None:
        """End what has taken too long."""
        now = time.monotonic()
        for request in [*self.order, *self.waiting]:
            if request.deadline is not None and now >= request.deadline:
                self.end(request, "timeout")

    def admit(self) -> None:
        """Give free rows to those who wait, in their order, as long as there are pages for their texts.

        Who could not read yet waits on: meanwhile another may have read what its text begins with.
        """
        while self.waiting and None in self.rows:
            if not self.exact and sum(not request.decodes for request in self.order) == READERS:
                return
            request, slot = self.waiting[0], self.rows.index(None)
            path = self.known_path(request)
            request.pages = self.prefixes.lent(path)
            if not self.prefixes.extend(request.pages, len(request.text) + 1):
                self.pool.take_back(request.pages)
                return
            self.waiting.popleft()
            request.slot, self.rows[slot] = slot, request
            self.order.append(request)
            self.adopt(request, path)
            self.runner.begin(request, counted=self.exact)

    def known_path(self, request: Request) -> list[Node]:
        """Pages in memory that a request's text begins with, of which it can go on; a token is left to read."""
        path = self.prefixes.find(request.text[:-1])
        step = self.step_size // self.pool.page_size
        path = path[: len(path) // step * step]
        while self.snapshots and path and path[-1].snapshot is None:
            path.pop()
        return path

    def adopt(self, request: Request, path: list[Node]) -> None:
        """Let a request go on behind pages that it was lent: with their snapshot, or in a copy of the next page."""
        assert request.slot is not None
        request.known = len(path) * self.pool.page_size
        if self.snapshots and path:
            self.runner.restore(request, path[-1].snapshot)
        if not self.by_chunk:
            page, length = self.prefixes.beside(path, request.text[:-1])
            if length:
                self.runner.copy_page(page, request.pages[len(path)])
                request.known += length
        request.shared = request.known

    def remember(self, request: Request) -> None:
        """Let others share what a request has read of its prompt, if it stands where they could go on."""
        known = request.known
        if not self.shares or not 0 < known <= len(request.prompt) or (self.by_chunk and known % self.step_size):
            return
        node = self.prefixes.insert(request.text[:known], request.pages)
        if self.snapshots and node.snapshot is None and request.slot is not None:
            self.prefixes.keep(node, self.runner.save(request))

    def make_room(self, request: Request, rows: int) -> None:
        """Pages for so many rows of a request, taken from the youngest, which may be itself, if there are none."""
        while not self.prefixes.extend(request.pages, rows):
            youngest = self.order[-1]
            youngest.preempted += 1
            self.release(youngest)
            self.waiting.appendleft(youngest)
            if youngest is request:
                return

    def read_prompts(self, readers: list[Request]) -> None:
        """Take in the next chunk of the first of these, and of another of like length; a text's end gives a token.

        The program has the same shape whoever reads beside: a row that is left over goes to a sequence that reads
        nothing.
        """
        chunks = {request: request.text[request.known : request.known + CHUNK] for request in readers}
        widths = {request: width_of(chunks[request]) for request in readers}
        reading = [one for one in readers if not self.steady or widths[one] == widths[readers[0]]][:READERS]
        others = [row for row in range(len(self.rows)) if self.rows[row] not in reading]
        slot = [self.rows.index(request) for request in reading]
        slot += others[: min(READERS, len(self.rows)) - len(reading)]
        drawn = self.runner.read(
            [self.rows[one] for one in slot],
            slot,
            [chunks[request] for request in reading],
            width=max(widths[request] for request in reading),
        )
        for request, token in zip(reading, drawn, strict=False):
            request.known += len(chunks[request])
            self.remember(request)
            if request.known == len(request.text):
                self.give(request, [token])

    def decode(self, requests: list[Request]) -> None:
        """Go on with these, each by a token and by what it drafts, all in one pass."""
        given = {request: self.next_given(request) for request in requests}
        trees = {request: self.draft(request) for request in requests}
        going = self.with_room(given, trees)
        if not going:
            return
        longest = max(len(trees[request].tokens) for request in going)
        t = EXACT if self.exact else 1 + next(length for length in DRAFTS if length >= longest)
        slot = self.slots_of(going)
        rows = self.rows if slot is None else [self.rows[one] for one in slot]
        wanted = [(given[row], trees[row]) if row in going else None for row in rows]
        said = self.runner.decode(rows, slot, wanted, t, exact=self.exact)
        for request, new in zip(rows, said, strict=True):
            if request not in going:
                continue
            read_all = request.known + len(given[request]) == len(request.text)
            request.known += len(given[request]) + (max(len(new) - 1, 0) if read_all else 0)
            self.remember(request)
            if read_all:
                self.give(request, new)

    def with_room(self, given: dict[Request, list[int]], trees: dict[Request, Tree]) -> list[Request]:
        """Those that have pages for what they are to take in, and for their drafts or else without them."""
        for request in given:
            if request.slot is None:  # it lost its row to an older one
                continue
            rows = request.known + len(given[request])
            if not self.prefixes.extend(request.pages, rows + len(trees[request].tokens)):
                trees[request] = Tree()
                self.make_room(request, rows)
        return [request for request in given if request.slot is not None]

    def slots_of(self, going: list[Request]) -> list[int] | None:
        """The rows of a pass: half of them if that is enough, None for all."""
        half = len(self.rows) // 2
        if self.steady or len(going) > half or half < 2:
            return None
        slots = [row for row, request in enumerate(self.rows) if request in going]
        others = [row for row, request in enumerate(self.rows) if request not in going]
        return [*slots, *others][:half]

    def next_given(self, request: Request) -> list[int]:
        """The tokens of its text that it takes in next."""
        return request.text[request.known : request.known + (EXACT if self.exact else 1)]

    def draft(self, request: Request) -> Tree:
        """What its drafter guesses, if it has read its text; a drafter that fails ends the request."""
        room = min(request.end - len(request.text) - 1, DRAFTS[-1])
        if request.drafter is None or not request.decodes or room <= 0:
            return Tree()
        try:
            return drafted_by(request.drafter, request.text, room, self.runner.model)
        except Exception as error:
            self.fail(request, error)
            return Tree()

    def give(self, request: Request, tokens: list[int]) -> None:
        """Add new tokens to a request, and end it if they do."""
        try:
            request.take(tokens)
        except Exception as error:
            self.fail(request, error)
        if request.done:
            self.release(request)


def width_of(chunk: list[int]) -> int:
    """For how many tokens the program is that takes in a chunk."""
    return next(width for width in WIDTHS if len(chunk) <= width)
