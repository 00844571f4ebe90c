"""What is said of a generation when it is over: as JSON, in a line, and as figures."""

import dataclasses
from typing import TYPE_CHECKING, Any

from .terminal import counted

if TYPE_CHECKING:
    from ..lm import LM, Completion


def flat(completion: "Completion") -> dict[str, Any]:
    """The completion as one level of JSON."""
    fields = dataclasses.asdict(completion)
    timings, speculation = fields.pop("timings"), fields.pop("speculation")
    return fields | timings | speculation


def closing_line(completion: "Completion", most: int, unused: list[str]) -> str:
    """One line on how it went, with `most` tokens to be had, and what to try next."""
    speed = completion.timings.get("decode_tok_s")
    rate = f", {speed:.0f} tokens/s" if speed else ""
    hint = f"; try {' or '.join(unused)}" if unused else ""
    cut = "ended by --max-tokens" if len(completion.tokens) == most else "the context is full"
    limit = f" ({cut})" if completion.finish_reason == "length" else ""
    return f"{counted(len(completion.tokens), 'token')}{limit}{rate}{hint}"


def shown(figure: int | float | list[float]) -> str:
    """A figure in a few digits."""
    if isinstance(figure, list):
        return " ".join(f"{one:.2f}" for one in figure)
    return f"{figure:.2f}" if isinstance(figure, float) else str(figure)


def statistics(lm: "LM", completion: "Completion") -> str:
    """Speed, and how much of the memory's bandwidth decoding used: each pass reads every weight once."""
    import jax

    from ..xla import memory_bandwidth

    timings = completion.timings
    lines = [f"{name:<16}{value:.3f}" for name, value in timings.items() if value is not None]
    lines += [f"{name:<20}{shown(value)}" for name, value in completion.speculation.items() if value is not None]
    speed = timings.get("decode_tok_s")
    if speed:
        read = sum(leaf.nbytes for leaf in jax.tree.leaves(lm.model))
        if lm.model.head is not None:  # of an embedding that is not the head too, one row is read
            read -= sum(leaf.nbytes for leaf in jax.tree.leaves(lm.model.embed))
        best = memory_bandwidth()
        achieved = read * speed / tokens_a_pass(completion)
        lines.append(
            f"{'weights read':<16}{achieved / 1e9:.1f} GB/s, {achieved / best:.0%} of the {best / 1e9:.1f} GB/s "
            "measured here"
        )
    return "\n".join(lines)


def tokens_a_pass(completion: "Completion") -> float:
    """How many tokens a pass of the model gave; 1 without drafts."""
    found = completion.speculation
    if not found:
        return 1.0
    drafted, plain = found["draft_passes"], found["plain_steps"]
    return (drafted * (found["tokens_per_pass"] or 0) + plain) / (drafted + plain)
