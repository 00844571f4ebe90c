"""A generation, watched: what every pass took in, what happened inside each block, and what came out.

The loops are those of `generate.py` and `speculative/decode.py` at their smallest; the programs, `advance` and
`verify`, are theirs, and the engine's `read` where memory is in pages.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from ..cache import StateSpec
from ..cache.pool import PagePool
from ..errors import UserError
from ..generate import Plan, advance, i32, padded
from ..lm import LM
from ..model import Model
from ..runner import read
from ..sampling import DRAWING, Sampler, require
from ..speculative import Tree
from ..speculative.decode import drafted_by, new_guess
from ..speculative.verify import verify
from ..xla import on_device
from .watched import Told, watched

if TYPE_CHECKING:
    from ..speculative import Drafter

MOST_PROMPT, MOST_TOKENS = 256, 32  # tokens that a page can show
MOST_DRAFT = 4  # tokens that are guessed at a time
LARGEST_PAGE = 128  # rows


@dataclass
class Pass:
    """One pass of the model over t tokens, of which the first n_kept stayed; b is 1 and left out.

    start     tokens that were remembered before
    tokens    what it took in: the prompt; or the token before, then what was drafted after it
    n_kept    of these; drafted tokens may go
    new       the tokens it gave: drafted ones that stayed, then one more
    blocks    by block what was `Told`: x, y [t d], weights [h t s] with s positions, ...
    state     by block the memory's arrays after the pass, keys and values in the order of the text
    pages     the page table: which pages hold the text's rows; empty where memory is not paged
    lens      logits [blocks + 1, v] that the model would give at token n_kept - 1, did it end in front of each
              block; the last row is the model's own
    stages    by name the logits [v] after each stage of the sampler
    """

    start: int
    tokens: list[int]
    n_kept: int
    new: list[int]
    blocks: list[dict[str, Any]]
    state: list[dict[str, np.ndarray]]
    pages: list[int]
    lens: np.ndarray
    stages: dict[str, np.ndarray]

    @property
    def speaks(self) -> int:
        """The index of the token after which the last new one was drawn."""
        return self.n_kept - 1

    @property
    def drafted(self) -> list[int]:
        """What was guessed."""
        return self.tokens[1:] if self.start else []


@dataclass
class Record:
    """The passes of one generation; finish_reason is `stop` (the model ended it) or `length`.

    memory is what it was given: one sequence, so many rows, in pages or not.
    """

    lm: LM
    prompt: list[int]
    passes: list[Pass]
    finish_reason: str
    memory: StateSpec

    @property
    def text(self) -> list[int]:
        """The prompt and what was generated."""
        return [*self.prompt, *(token for one in self.passes for token in one.new)]


def watch(
    lm: LM,
    prompt: str | Sequence[int],
    sampler: Sampler,
    max_tokens: int,
    drafter: "Drafter | None" = None,
    page_size: int = 0,
) -> Record:
    """Continue a prompt, a text or token ids, with everything watched; in pages of so many rows, or none for 0.

    UserError if the prompt has more than MOST_PROMPT tokens, does not fit into the model's context, or is to be
    continued by more than MOST_TOKENS, or a page has more rows than LARGEST_PAGE.
    """
    require(1 <= max_tokens <= MOST_TOKENS, "max_tokens", max_tokens, f"1 to {MOST_TOKENS} for a trace")
    require(0 <= page_size <= LARGEST_PAGE, "page_size", page_size, f"1 to {LARGEST_PAGE} rows, or 0 for no pages")
    ids = lm.prompt_ids(prompt)
    if len(ids) > MOST_PROMPT:
        raise UserError(f"the prompt has {len(ids)} tokens, expected at most {MOST_PROMPT} for a trace; shorten it")
    plan = Plan.of(ids, max_tokens, lm.config.context)
    memory = StateSpec(1, plan.capacity)
    if page_size:
        n_pages = -(-plan.capacity // page_size)
        memory = replace(memory, kind="paged", page_size=page_size, n_pages=n_pages)
    passes = list(run(lm.model, replace(plan, memory=memory), sampler, drafter, lm.ends))
    return Record(lm, ids, passes, "stop" if passes[-1].new[-1] in lm.ends else "length", memory)


def run(
    model: Model, plan: Plan, sampler: Sampler, drafter: "Drafter | None", ends: Collection[int]
) -> Iterator[Pass]:
    """Passes up to one of the tokens that end a text, or the plan's end."""
    spy, text, lent = watched(model), list(plan.prompt), Lent(plan.memory)
    state, _ = plan.begin(spy, sampler)
    tokens, n = padded(text)
    told, token = taken_in(spy, state, sampler, tokens, 0, n, lent.table(n))
    text.append(token)
    yield new_pass(model, sampler, told, 0, plan.prompt, n, text[-1:], lent.pages)
    while len(text) < plan.end and text[-1] not in ends:
        start, state = len(text) - 1, tuple(one.memory for one in told)
        room = min(plan.end - len(text) - 1, MOST_DRAFT)
        draft = longest_chain(drafted_by(drafter, text, room, model)) if drafter and room else []
        draft = [*takewhile(lambda token: token not in ends, draft)]  # nothing comes after an end
        table = lent.table(start + 1 + len(draft))
        if draft:
            chain = Tree(draft, list(range(-1, len(draft) - 1)))
            guess = new_guess([(text[-1:], chain)], MOST_DRAFT + 1, pages=table)
            told, _, drawn, n_new = verify(spy, state, None, sampler, guess, i32(start))
            new = np.asarray(drawn)[0, : n_new.item()].tolist()
        else:
            last = on_device(np.array([text[-1:]], np.int32))
            told, token = taken_in(spy, state, sampler, last, start, 1, table)
            new = [token]
        yield new_pass(model, sampler, told, start, [text[-1], *draft], len(new), new, lent.pages)
        text += new


def taken_in(
    spy: Model, state: tuple, sampler: Sampler, tokens: jax.Array, start: int, n: int, table: np.ndarray | None
) -> tuple[Sequence[Told], int]:
    """Take in n tokens [1 t] at a position -> what was told, and the token that follows."""
    if table is None:
        told, _, token = advance(spy, state, None, sampler, tokens, i32(start), i32(n))
    else:
        told, _, token = read(spy, state, None, sampler, tokens, i32(start), i32(n), i32(0), on_device(table))
    return told, token.item()


class Lent:
    """The pages that a growing text was lent, if memory has pages."""

    def __init__(self, memory: StateSpec):
        self.pool, self.pages = PagePool(memory.n_pages, memory.page_size), []

    def table(self, rows: int) -> np.ndarray | None:
        """The page table i32 [1 p] of a text that now has so many rows; None without pages."""
        if not self.pool.n_pages:
            return None
        enough = self.pool.extend(self.pages, rows)
        assert enough, "there are pages for the longest text"
        table = np.zeros((1, self.pool.n_pages), np.int32)
        table[0, : len(self.pages)] = self.pages
        return table


def longest_chain(tree: Tree) -> list[int]:
    """Of a tree of guesses the longest one, the first of several."""
    chains: list[list[int]] = []
    for token, parent in zip(tree.tokens, tree.parent, strict=True):
        chains.append([*(chains[parent] if parent >= 0 else []), token])
    return max(chains, key=len, default=[])


def new_pass(
    model: Model,
    sampler: Sampler,
    told: Sequence[Told],
    start: int,
    tokens: Sequence[int],
    n_kept: int,
    new: list[int],
    pages: list[int],
) -> Pass:
    """What a pass tells, as NumPy arrays, and what the head makes of it."""
    t, end = len(tokens), start + len(tokens)
    blocks = [plain(one.seen, t, end) for one in told]
    state = [in_order(arrays_of(one.memory), pages) for one in told]
    lens = look_through(model, stream_of(blocks)[:, n_kept - 1])
    if not jnp.all(jnp.isfinite(lens)):
        raise UserError(
            f"after {start + n_kept} tokens the model gives numbers that are not finite; nothing to trace"
        )
    stages = sampled_in_stages(sampler, lens[-1:])
    return Pass(start, list(tokens), n_kept, new, blocks, state, [*pages], np.asarray(lens), stages)


def stream_of(blocks: list[dict[str, Any]]) -> np.ndarray:
    """The residual stream [blocks + 1, t, d]: what went into the first block, and what came out of each."""
    return np.stack([blocks[0]["x"], *(one["y"] for one in blocks)])


def in_order(memory: dict[str, np.ndarray], pages: list[int]) -> dict[str, np.ndarray]:
    """A memory's arrays without slots; keys and values [p o g k] of pages [p] as rows [g s k]."""
    if not pages or "keys" not in memory:
        return {name: array[0] for name, array in memory.items()}
    rows = {name: array[pages].reshape(-1, *array.shape[2:]) for name, array in memory.items()}
    return {name: np.swapaxes(array, 0, 1) for name, array in rows.items()}


def plain(seen: dict[str, Any], t: int, end: int) -> dict[str, Any]:
    """What was seen of t real tokens, as NumPy arrays without b; weights by position and not by row."""
    out: dict[str, Any] = {name: np.asarray(array)[0, :t] for name, array in seen.items() if name in PER_TOKEN}
    if "gates" in seen:
        out["gates"] = {name: np.asarray(array)[0, :t] for name, array in seen["gates"].items()}
    if "weights" in seen:
        weights, pos = np.asarray(seen["weights"])[0, :, :t], np.asarray(seen["pos"])[0]
        out["weights"] = np.zeros((*weights.shape[:2], end), weights.dtype)
        out["weights"][:, :, pos[pos >= 0]] = weights[:, :, pos >= 0]
    return out


PER_TOKEN = ("x", "y", "q", "chosen", "share", "inside")


def arrays_of(memory: Any) -> dict[str, np.ndarray]:
    """The arrays of a memory by name: `ssm` and `conv` of a recurrence, `keys` and `values` of attention."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(memory)
    return {jax.tree_util.keystr(path[-1:]).strip(".[]'"): np.asarray(leaf) for path, leaf in leaves}


@jax.jit
def look_through(model: Model, stream: jax.Array) -> jax.Array:
    """What the model's norm and head make of the residual stream [n d]: logits [n v]. (The logit lens.)"""
    return model.logits(model.norm(stream))


def sampled_in_stages(sampler: Sampler, logits: jax.Array) -> dict[str, np.ndarray]:
    """The logits [1 v] as they are, and after each stage that the sampler has, [v] by name."""
    out, some = {"logits": np.asarray(logits[0])}, dict.fromkeys(DRAWING)
    for name in DRAWING:
        value = getattr(sampler, name)
        if value is not None:
            some[name] = value
            out[f"{name} {value.item():g}"] = np.asarray(replace(sampler, **some).filtered(logits, None)[0])
    return out
