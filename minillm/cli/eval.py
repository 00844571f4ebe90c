"""`minillm eval`: how well a model predicts a text, and what a recipe costs."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UserError
from ..folders import whole
from .completion import ModelName
from .generate import opened
from .terminal import status

if TYPE_CHECKING:
    from ..evaluate import Corpus, Figure, Tally
    from ..lm import LM

WINDOW = 512
PATH = click.Path(path_type=Path)


@click.command("eval", short_help="Measure how well a model predicts a text.")
@click.argument("model", type=ModelName())
@click.option("--against", metavar="MODEL", type=ModelName(), help="The reference to compare with; same tokens.")
@click.option("--quant", metavar="RECIPE", help="MODEL in few bits, by default against MODEL itself.")
@click.option("--text", type=PATH, metavar="FILE", help='A text, or .jsonl with a {"text": "…"} a line.')
@click.option("--window", type=click.IntRange(16), help=f"Tokens at once; else {WINDOW}, or the context.")
@click.option("--output", type=PATH, metavar="FILE", help="Where to write the figures; a stopped run goes on.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
def command(
    model: str,
    against: str | None,
    quant: str | None,
    text: Path | None,
    window: int | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Measure MODEL's perplexity and bits per byte on a text, by default the bundled ones, each with an interval
    of 95 % confidence. With a reference also the KL divergence from it at each token, in nats (mean, and the 99th
    percentile), and how often both find the same token likeliest.

    \b
    Examples:
      minillm eval tiny-transformer
      minillm eval tiny-transformer --quant q4_k
      minillm eval tiny-draft --against tiny-transformer --text held-out.jsonl
      minillm eval tiny-transformer --window 256 --output figures.json

    A .jsonl has a document a line, any other file is one. `python -c "help('minillm.evaluate')"` has the
    definitions.
    """
    kept = click.get_current_context().with_resource(writing(output))
    with status("reading the text"):
        corpus = corpus_of(text)
    against = model if quant is not None and against is None else against
    with status(f"loading {model}"):
        lms = [opened(model, quant), *([] if against is None else [opened(against, None)])]
    tokens = window_for(lms, model, against, window)
    about = {"model": model, "quant": quant, "against": against, "text": corpus.name, "window": tokens}
    files = [stamps(name) for name in (model, against) if name is not None]
    kept.job = sha256(json.dumps([about, files, corpus.digest]).encode()).hexdigest()
    tally = run(lms, corpus, tokens, kept)
    counts = {"documents": corpus.count, "bytes": corpus.bytes, "tokens": tally.tokens, "units": tally.units}
    figures = tally.figures()
    result = about | counts | {name: one._asdict() for name, one in figures.items()}
    kept.finish(result)
    click.echo(json.dumps(result) if as_json else table(result, figures))


def corpus_of(text: Path | None) -> "Corpus":
    """What is measured on."""
    from ..evaluate import Corpus
    from ..texts import evaluation

    if text is not None:
        return Corpus.in_file(text)
    return Corpus.of("the bundled texts", lambda: ([document] for document in evaluation()))


def window_for(lms: "list[LM]", model: str, against: str | None, window: int | None) -> int:
    """How many tokens models see at once; UserError if they cannot see so many, or not the same tokens."""
    from ..lm import vocabulary_of

    for lm, name in zip(lms, (model, against), strict=False):
        if lm.tokenizer is None:
            raise UserError(f"{name} has no tokenizer, so it cannot read a text")
    if len({lm.config.v for lm in lms}) > 1 or any(vocabulary_of(lm) != vocabulary_of(lms[0]) for lm in lms):
        raise UserError(f"{against} has other tokens than {model}, expected a model with the same to compare with")
    context = min(lm.config.context for lm in lms)
    if window is not None and window > context:
        raise UserError(f"--window is {window}, but the context is {context}; take that or less")
    return window or min(WINDOW, context)


def stamps(model: str) -> list[tuple[str, int, int]]:
    """What tells the files of a model from others without reading them: names, sizes, times of change."""
    from ..checkpoint.origin import files_of
    from ..lm import find_model

    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files_of(find_model(model))]


def run(lms: "list[LM]", corpus: "Corpus", window: int, kept: "Kept") -> "Tally":
    """Score the text, or what is left of it, with a progress bar."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from ..evaluate import Tally, tallied

    tokenizer, tally = lms[0].tokenizer, Tally(paired=len(lms) == 2)
    assert tokenizer is not None
    kept.restore(tally)
    columns = BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("compiling", total=corpus.bytes)
        try:
            for _ in tallied(tuple(lm.model for lm in lms), tokenizer, corpus, window, tally):
                kept.save(tally)
                bar.update(task, completed=tally.bytes, description=running(tally.figures()))
        except KeyboardInterrupt:
            bar.stop()
            click.echo(kept.farewell(), err=True)
            raise
    return tally


def running(figures: "dict[str, Figure]") -> str:
    """The figures that people wait for."""
    names = {"perplexity": "perplexity", "kld_mean": "KLD", "same_top": "same top"}
    return ", ".join(f"{said} {figures[name].value:.4g}" for name, said in names.items() if name in figures)


def table(result: dict[str, Any], figures: "dict[str, Figure]") -> str:
    """The figures for people."""
    quant = f" as {result['quant']}" if result["quant"] else ""
    against = f" against {result['against']}" if result["against"] else ""
    counts = {name: result[name] for name in ("documents", "bytes", "tokens")}
    counted = ", ".join(f"{n:,} {name if n > 1 else name[:-1]}" for name, n in counts.items())
    lines = [
        f"{result['model']}{quant}{against}",
        f"{result['text']}: {counted}; windows of {result['window']}",
        "",
    ]
    for name, (value, low, high) in figures.items():
        interval = "" if low is None else f"   {low:.4g} to {high:.4g}"
        lines.append(f"{name.replace('_', ' '):<26}{value:>10.4g}{interval}")
    by = "documents" if result["documents"] > 1 else "windows"
    sure = f"95 % confidence, by {result['units']:,} {by}" if result["units"] > 1 else "no interval: one window"
    return "\n".join([*lines, "", sure])


@contextmanager
def writing(target: Path | None) -> Iterator["Kept"]:
    """What is kept of the figures, while no other run has their file; UserError if one has it, or it is there."""
    from ..checkpoint.download import alone

    if target is None:
        yield Kept(None, None)
        return
    if not target.name:
        raise UserError(f"the output is {str(target)!r}, expected the name of a file")
    busy = f"{target} is being written by another run; wait for it, or name another output"
    part, mark = (target.with_name(target.name + end) for end in (".part", ".lock"))
    with alone(mark, busy):
        try:
            if target.exists():
                raise UserError(f"{target} is there already; move it away, or name another output")
            yield Kept(target, part)
        finally:
            mark.unlink()


class Kept:
    """The file for the figures, and beside it (FILE.part) what is done of them; with no file nothing is kept."""

    def __init__(self, target: Path | None, part: Path | None):
        self.target, self.part, self.job = target, part, ""

    def restore(self, tally: "Tally") -> None:
        """Have the tally go on where a run of the same job was; UserError if it was another."""
        if self.part is None or not self.part.exists():
            return
        try:
            state = json.loads(self.part.read_bytes())
            same = state["job"] == self.job
        except (ValueError, TypeError, KeyError):
            same = False
        if not same:
            raise UserError(
                f"{self.part} is what is left of another run: text, models or options differ; "
                "move it away, or name another output"
            )
        tally.restore(state["tally"])

    def save(self, tally: "Tally") -> None:
        """Keep what is done."""
        if self.part is not None:
            write(self.part, {"job": self.job, "tally": tally.state()})

    def finish(self, result: dict[str, Any]) -> None:
        """Put the figures where they belong."""
        if self.target is not None and self.part is not None:
            write(self.target, result)
            self.part.unlink(missing_ok=True)

    def farewell(self) -> str:
        """What becomes of a run that is stopped."""
        if self.part is None or not self.part.exists():
            return "nothing is kept; with --output FILE a run can be stopped and goes on"
        return f"what is done is kept in {self.part}; the same command goes on"


def write(path: Path, value: dict[str, Any]) -> None:
    """Write JSON in one go."""
    with whole(path) as draft:
        draft.write_text(json.dumps(value) + "\n", encoding="utf-8")
