"""Speculative decoding beside plain decoding: `python -m bench.speculation`.

Copying, editing and quoting by SmolLM2-135M, where text repeats itself, with drafters that need no other model; a
recipe by tiny-transformer with tiny-draft; and an essay, where there is little to look up. Both decode the same
greedy text, taking turns in one process; what counts is the ratio within a round. Writes results/speculation.json.
"""

from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.table import Table

import minillm
from minillm.lm import LM, Completion

from .decode import TEXT
from .report import ratio, rounded, spread, where_and_what, write
from .timing import rotated, wait_for_quiet

SMOLLM2 = "smollm2-135m"
STORY = TEXT.replace("\n", " ")
SENTENCES = STORY.split(". ")


class Task(NamedTuple):
    """What is written by which model, and who drafts."""

    model: str
    prompt: str
    drafters: tuple[str, ...]


LOOKUPS = "prompt-lookup", "ngram"
TASKS = {
    "copy": Task(SMOLLM2, f"Original:\n{STORY}\n\nAn exact copy:\n{SENTENCES[0]}.", LOOKUPS),
    "edit": Task(
        SMOLLM2,
        f"Original:\n{STORY}\n\nThe same, a sentence a line, numbered:\n1. {SENTENCES[0]}.\n2. {SENTENCES[1]}.\n3.",
        (*LOOKUPS, "skip:10"),
    ),
    "quote": Task(
        SMOLLM2,
        f'{STORY}\n\nQuestion: What does the text say about his daughter?\nAnswer: It says: "His daughter asked',
        LOOKUPS,
    ),
    "essay": Task(SMOLLM2, "An essay on why people live near rivers.\n\n", (*LOOKUPS, "skip:10")),
    "recipe": Task("tiny-transformer", "Recipe: Tomato Soup\n", (*LOOKUPS, "skip:2", "tiny-draft")),
}


@click.command(help=__doc__)
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Turns of each.")
@click.option("--tokens", default=128, show_default=True, type=click.IntRange(1), help="Tokens a turn, at most.")
def main(rounds: int, tokens: int) -> None:
    report = {
        "tasks": {name: measure(task, rounds, tokens) for name, task in TASKS.items()},
        "setting": {"rounds": rounds, "tokens": tokens, "temperature": 0, "dtype": "float32"},
        **where_and_what(),
    }
    show(report)
    write("speculation", report)


def measure(task: Task, rounds: int, tokens: int) -> dict[str, Any]:
    """Every drafter's speed over plain decoding, and what it did."""
    plain, drafted = minillm.load(task.model), minillm.load(task.model)  # their matrices are stored differently
    lms: dict[str | None, LM] = {None: plain, **dict.fromkeys(task.drafters, drafted)}
    for draft, lm in lms.items():  # whatever is compiled on first use
        run(lm, task, draft, tokens)
    played = [{draft: turn(lms[draft], task, draft, tokens) for draft in rotated([*lms], i)} for i in range(rounds)]
    return {draft: compared(played, draft) for draft in task.drafters}


def run(lm: LM, task: Task, draft: str | None, tokens: int) -> Completion:
    """One greedy text."""
    return lm.generate(task.prompt, max_tokens=tokens, temperature=0.0, draft=draft)


def turn(lm: LM, task: Task, draft: str | None, tokens: int) -> Completion:
    """The same, when other programs leave the machine alone."""
    wait_for_quiet()
    return run(lm, task, draft, tokens)


def compared(played: list[dict[str | None, Completion]], draft: str) -> dict[str, Any]:
    """A drafter against none."""
    last, plain = played[-1][draft], played[-1][None]
    pairs = list(zip(last.tokens, plain.tokens, strict=False))
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    figures = {name: value for name, value in last.speculation.items() if isinstance(value, int | float)}
    return {
        "over plain": ratio([decode_speed(one[draft]) / decode_speed(one[None]) for one in played]),
        "tokens": len(plain.tokens),
        "same_from_the_start": same,
        **{name: rounded(value) for name, value in figures.items()},
        "kept_by_place": [rounded(rate) for rate in last.speculation["kept_by_place"]],
    }


def decode_speed(completion: Completion) -> float:
    """Tokens a second after the first."""
    speed = completion.timings["decode_tok_s"]
    assert speed is not None  # two tokens at least
    return speed


def show(report: dict[str, Any]) -> None:
    """Print the report's main numbers."""
    columns = ("tokens a pass", "passes", "steps", "predicted", "same tokens")
    table = Table("", "drafter", "over plain (95 %)", *columns)
    for task, drafters in report["tasks"].items():
        for draft, found in drafters.items():
            row = [task, draft, spread(found["over plain"])]
            row += [f"{found.get('tokens_per_pass', 0):.1f}", f"{found['draft_passes']:.0f}"]
            row += [f"{found['plain_steps']:.0f}", f"{found.get('predicted_speed_up', 0):.2f}x"]
            table.add_row(*row, f"{found['same_from_the_start']} of {found['tokens']}")
            task = ""
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
