"""Generation with a drafter: draft, verify, yield what stays, and learn from it how much to draft.

`generate_exactly` is the other mode: it does everything, the prompt, each token and each draft, in one program
of one shape. Sums in floating point depend on the shape of the program, so elsewhere two tokens that are nearly
equally likely may change places; here tokens are the same to the bit whatever is drafted.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from ..generate import Plan, advance, enlarged, i32, read_prompt
from ..model import Model
from ..sampling import Sampler
from ..xla import Programs, on_device
from . import Drafter, Tree
from .pace import Cost, Pace
from .record import Record, Round
from .verify import Guess, verify

EXACT = 8  # tokens of every span in exact generation


def speculate(
    model: Model, plan: Plan, sampler: Sampler, drafter: Drafter, pace: Pace, record: Record
) -> Iterator[int]:
    """Yield the ids that `generate_tokens` would yield, several at a time where the drafter guesses well."""
    state, history, token = read_prompt(model, plan, sampler)
    text, capacity = [*plan.prompt, token.item()], plan.capacity
    yield text[-1]
    with Programs() as programs:
        while len(text) < plan.end:
            began, compiled = time.perf_counter(), programs.count
            length = pace.choose(plan.end - len(text) - 1)
            tree = drafted_by(drafter, text, length, model) if length else Tree()
            drafted = time.perf_counter()
            while len(text) + len(tree.tokens) > capacity:
                capacity = min(2 * capacity, plan.context)
                state = enlarged(state, plan.room(model, capacity))
            start, new = i32(len(text) - 1), []
            if tree.tokens:
                guess = new_guess([(text[-1:], tree)], pace.width(length) + 1)
                state, history, tokens, n = verify(model, state, history, sampler, guess, start)
                new = np.asarray(tokens)[0, : n.item()].tolist()
            else:
                last = on_device(np.array([text[-1:]], np.int32))
                state, history, token = advance(model, state, history, sampler, last, start, i32(1))
                new = [token.item()]
            text += new
            done, timed = time.perf_counter(), programs.count == compiled
            cost = Cost(drafted - began, done - drafted)
            pace.observe(pace.width(length) if tree.tokens else 0, len(new) - 1, cost if timed else None)
            record.rounds.append(Round(tree.depth, len(new), *cost, timed))
            record.predicted = pace.speed_up
            yield from new


def generate_exactly(
    model: Model, plan: Plan, sampler: Sampler, drafter: Drafter | None, record: Record
) -> Iterator[int]:
    """Yield the ids that continue the prompt, the same to the bit with every drafter and with none."""
    plan = replace(plan, capacity=plan.end)  # memory that grew would be another shape
    state, history = plan.begin(model, sampler)
    text, known = list(plan.prompt), 0
    with Programs() as programs:
        while len(text) < plan.end:
            began, compiled, given = time.perf_counter(), programs.count, text[known : known + EXACT]
            room = min(plan.end - len(text) - 1, EXACT - 1)
            last = known + len(given) == len(text)  # the prompt is read
            decodes = last and len(given) == 1 and room > 0
            tree = drafted_by(drafter, text, room, model) if drafter and decodes else Tree()
            drafted = time.perf_counter()
            guess = new_guess([(given, tree)], EXACT, trees=True)
            state, history, tokens, n = verify(model, state, history, sampler, guess, i32(known))
            known += len(given)
            if not last:
                continue
            new = np.asarray(tokens)[0, : n.item()].tolist()
            text, known = text + new, known + len(new) - 1
            done, timed = time.perf_counter(), programs.count == compiled
            record.rounds.append(Round(tree.depth, len(new), drafted - began, done - drafted, timed))
            yield from new


def drafted_by(drafter: Drafter, text: list[int], most: int, model: Model) -> Tree:
    """Its draft; ValueError if that is no tree of at most so many of the model's tokens."""
    tree, v = drafter.draft(text, most), model.embed.shape[0]
    size, name = len(tree.tokens), f"{type(drafter).__name__}.draft"
    if size > most or len(tree.parent) != size:
        raise ValueError(f"{name} gave {size} tokens with {len(tree.parent)} parents, expected {most} at most")
    for place, (token, parent) in enumerate(zip(tree.tokens, tree.parent, strict=True)):
        if not (0 <= token < v and -1 <= parent < place):
            raise ValueError(
                f"{name}: token {place} is {token} and follows token {parent}, expected an id below {v} that "
                "follows an earlier token, or -1 for the text"
            )
    return tree


def new_guess(
    rows: Sequence[tuple[list[int], Tree] | None],
    width: int,
    trees: bool = False,
    slot: np.ndarray | None = None,
    pages: np.ndarray | None = None,
) -> Guess:
    """Given tokens and a tree that follows them, for each row, in so many places; None is a row without tokens.

    `trees` asks for parents in any case; slot and pages as in `Span`.
    """
    tokens, parent = np.zeros((len(rows), width), np.int32), np.full((len(rows), width), -1, np.int32)
    n_given, n = np.ones(len(rows), np.int32), np.zeros(len(rows), np.int32)
    for i, row in enumerate(rows):
        if row is None:
            continue
        given, tree = row
        n_given[i], n[i] = len(given), len(given) + len(tree.tokens)
        tokens[i, : n[i]] = [*given, *tree.tokens]
        parent[i, : n[i]] = [*range(-1, len(given) - 1), *(above + len(given) for above in tree.parent)]
    with_parents = trees or not all(row is None or row[1].is_chain for row in rows)
    return Guess(tokens, n_given, n, parent if with_parents else None, slot, pages)
