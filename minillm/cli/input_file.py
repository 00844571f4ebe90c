"""`minillm generate --input`: a file of prompts, continued together."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UserError

if TYPE_CHECKING:
    from .generate import Asked

BATCH = 8


def run_file(
    asked: "Asked", source: Path | None, target: Path | None, batch: int | None, options: dict[str, Any]
) -> None:
    """Continue all prompts of a file, with a progress bar; nothing is done for an output that is there already."""
    if source is None or target is None:
        raise UserError("--input and --output come together; give both")
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ..batch import Job

    serving = {name: options.pop(name) for name in ("exact", "cache", "lossy")} | {"max_batch": batch or BATCH}
    given = {name: one for name, one in options.items() if one is not None} | {"stop": list(options["stop"])}
    job = Job(source, target, asked._asdict(), given, serving)
    if job.finished:
        click.echo(f"{len(job.lines)} continuations are in {target} already", err=True)
        return
    lm = asked.opened()
    columns = MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task, began, tokens = bar.add_task("compiling", total=len(job.lines)), time.perf_counter(), 0
        done = 0
        try:
            for one in job.run(lm, lambda text: lm.prompt_ids(asked.put(text, lm))):
                done, tokens = done + 1, tokens + len(one["tokens"])
                bar.update(task, advance=1, description=f"{tokens / (time.perf_counter() - began):.0f} tokens/s")
        except KeyboardInterrupt:
            if done:
                click.echo(f"{done} of {len(job.lines)} are kept in {job.part}; the same command goes on", err=True)
            raise
    click.echo(f"{len(job.lines)} continuations in {target}", err=True)
