"""`minillm generate`: continue a prompt."""

import dataclasses
import gc
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UserError
from ..folders import program_folder
from .terminal import interactive, leave, note, printable, status

if TYPE_CHECKING:
    from ..lm import LM, Completion, Stream


LARGEST_PROMPT = 64 << 20  # bytes
BUNDLED, OPENING = "tiny-transformer", "Recipe: Tomato Soup"
OTHERS = f"{BUNDLED} knows recipes and scripture; for a general model: minillm pull smollm2-135m"


@click.command("generate", short_help="Continue a prompt.")
@click.argument("prompt", required=False)
@click.option("--model", default=BUNDLED, show_default=True, help="A name, a .gguf file, or a folder.")
@click.option("--max-tokens", default=256, show_default=True, help="Stop after this many tokens.")
@click.option("--temperature", default=0.7, show_default=True, help="0 always takes the likeliest token.")
@click.option("--top-k", default=0, help="Keep the k likeliest tokens; 0 is off.")
@click.option("--top-p", default=1.0, help="Keep the likeliest up to this probability; 1 is off.")
@click.option("--min-p", default=0.0, help="Keep tokens this likely beside the best; 0 is off.")
@click.option("--repeat-penalty", default=1.0, help="Above 1 discourages tokens already there; 1 is off.")
@click.option("--seed", type=int, help="Draw the same text again; --json shows a run's.")
@click.option("--stop", multiple=True, help="End before this text; may be given more than once.")
@click.option("--chat", is_flag=True, help="Put PROMPT into the checkpoint's own chat template.")
@click.option("--quant", metavar="RECIPE", help="Weights in few bits: w8a8, int4-g32, q4_k …")
@click.option("--draft", help="Guess by prompt-lookup, ngram, skip:K or a model.")
@click.option("--exact", is_flag=True, help="The same tokens to the bit with any --draft.")
@click.option("--cache", help="Memory: int8, fp8, kivi4, kivi2, sinks:N or h2o:N.")
@click.option("--lossy", is_flag=True, help="Let h2o go with --draft, --exact and --input.")
@click.option("--input", "source", type=click.Path(path_type=Path), help="Many prompts, as JSON lines.")
@click.option("--output", "target", type=click.Path(path_type=Path), help="The file for them.")
@click.option(
    "--batch", default=8, show_default=True, type=click.IntRange(1), help="How many --input lines at once."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@click.option("--stats", is_flag=True, help="Show speed against this machine's memory bandwidth.")
def command(
    prompt: str | None,
    model: str,
    as_json: bool,
    stats: bool,
    chat: bool,
    quant: str | None,
    source: Path | None,
    target: Path | None,
    batch: int,
    **options: Any,
) -> None:
    """Continue PROMPT, or standard input (less one final line break) if it is - or left out.

    The default model comes with minillm and knows recipes and scripture, nothing else; `minillm list` shows others.

    \b
    Examples:
      minillm generate "Recipe: Tomato Soup"
      minillm generate --model smollm2-135m "The capital of France is"
      minillm generate --model smollm2-135m --chat "Name three colours." --temperature 0
      minillm generate --input prompts.jsonl --output texts.jsonl

    A line of --input is "a prompt" or {"prompt": "…", "max_tokens": 20}. A run that was stopped goes on.
    """
    gc.disable()  # a short-lived process: looking for cycles while reading a vocabulary takes 0.3 s
    if source is not None or target is not None:
        unfit = {"PROMPT": prompt is not None, "--draft": options.pop("draft"), "--json": as_json, "--stats": stats}
        run_file(
            source, target, model, quant, chat, batch, options, [name for name, given in unfit.items() if given]
        )
        return
    text = read_prompt(prompt, model)
    shown = interactive() and not as_json
    lm, stream = start(text, model, quant, chat, options)
    if shown:
        click.echo(click.style(printable(text), dim=True), nl=chat)
    try:
        for piece in stream:
            if not as_json:
                click.echo(printable(piece) if shown else piece, nl=False)
    except KeyboardInterrupt:
        stream.close()
    completion = stream.completion()
    if as_json:
        click.echo(json.dumps(flat(completion), ensure_ascii=False))
    else:
        click.echo()
    if shown:
        tries = {
            "--chat": chat or lm.tokenizer is None or lm.tokenizer.chat_template is None,
            "--stats": stats,
            "--temperature 0": options["temperature"] == 0,
        }
        unused = [option for option, used in tries.items() if not used]
        click.echo(click.style(closing_line(completion, unused), dim=True), err=True)
        if model == BUNDLED:
            click.echo(click.style(OTHERS, dim=True), err=True)
    if stats:
        click.echo(statistics(lm, completion), err=True)
    if completion.finish_reason == "interrupted":
        leave(130)


def read_prompt(prompt: str | None, model: str) -> str:
    """The prompt, from standard input if it is `-` or missing; UserError if it is not UTF-8.

    Somebody at a terminal who gives none and no model either is shown what the bundled one can do.
    """
    if prompt not in (None, "-"):
        return prompt
    if sys.stdin is None:
        raise UserError("standard input is closed; give a prompt")
    if prompt is None and sys.stdin.isatty() and model == BUNDLED:
        return OPENING
    if prompt is None and sys.stdin.isatty():
        raise UserError('there is no prompt; give one, as in: minillm generate --model MODEL "Once upon a time"')
    raw = sys.stdin.buffer.read(LARGEST_PROMPT + 1)
    if len(raw) > LARGEST_PROMPT:
        raise UserError(f"standard input has more than {LARGEST_PROMPT} bytes, which no model here can read")
    try:
        return raw.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8: byte {error.start} is {raw[error.start]:#04x}") from None


def start(prompt: str, model: str, quant: str | None, chat: bool, options: dict[str, Any]) -> "tuple[LM, Stream]":
    """Load the model and generate the first piece of text, telling a terminal what takes the time."""
    programs = program_folder()
    try:
        first_run = not any(programs.iterdir())
    except OSError:  # it is not there, or not ours to see
        first_run = True
    doing = "compiling (first run only)" if first_run else f"loading {model}, compiling what is new"
    first_line = printable(prompt).strip().partition("\n")[0][:60]
    with status(f"{first_line} … {doing}"):
        lm = opened(model, quant)
        ids = lm.chat_ids([{"role": "user", "content": prompt}]) if chat else prompt
        stream = lm.stream(ids, **options)
        stream.wait()
    return lm, stream


def opened(model: str, quant: str | None) -> "LM":
    """The model, quantised if so asked."""
    from ..lm import load

    lm = load(model)
    if quant is None:
        return lm
    from ..quant.quantised import summary

    lm, changes = lm.quantize(quant)
    note(summary(quant, changes))
    return lm


def run_file(
    source: Path | None,
    target: Path | None,
    model: str,
    quant: str | None,
    chat: bool,
    batch: int,
    options: dict[str, Any],
    unfit: list,
) -> None:
    """Continue all prompts of a file, with a progress bar."""
    if source is None or target is None:
        raise UserError("--input and --output come together; give both")
    if unfit:
        raise UserError(f"{unfit[0]} does not go with --input; leave it out")
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ..batch import Job

    serving = {name: options.pop(name) for name in ("exact", "cache", "lossy")} | {"max_batch": batch}
    given = {name: one for name, one in options.items() if one is not None} | {"stop": list(options["stop"])}
    whose = {"model": model, "quant": quant, "chat": chat}
    job, lm = Job(source, target, whose, given, serving), opened(model, quant)
    encode = (lambda text: lm.chat_ids([{"role": "user", "content": text}])) if chat else lm.prompt_ids
    columns = MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task, began, tokens = bar.add_task("", total=len(job.lines)), time.perf_counter(), 0
        done = 0
        try:
            for one in job.run(lm, encode):
                done, tokens = done + 1, tokens + len(one["tokens"])
                bar.update(task, advance=1, description=f"{tokens / (time.perf_counter() - began):.0f} tokens/s")
        except KeyboardInterrupt:
            if done:
                click.echo(f"{done} of {len(job.lines)} are kept in {job.part}; the same command goes on", err=True)
            raise
    click.echo(f"{len(job.lines)} continuations in {target}", err=True)


def flat(completion: "Completion") -> dict[str, Any]:
    """The completion as one level of JSON."""
    fields = dataclasses.asdict(completion)
    timings, speculation = fields.pop("timings"), fields.pop("speculation")
    return fields | timings | speculation


def closing_line(completion: "Completion", unused: list[str]) -> str:
    """One line on how it went, and what to try next."""
    speed = completion.timings.get("decode_tok_s")
    rate = f", {speed:.0f} tokens/s" if speed else ""
    hint = f"; try {' or '.join(unused)}" if unused else ""
    limit = " (as many as asked for, or the context is full)" if completion.finish_reason == "length" else ""
    return f"{len(completion.tokens)} tokens{limit}{rate}{hint}"


def shown(figure: int | float | list[float]) -> str:
    """A figure in a few digits."""
    if isinstance(figure, list):
        return " ".join(f"{one:.2f}" for one in figure)
    return f"{figure:.2f}" if isinstance(figure, float) else str(figure)


def statistics(lm: "LM", completion: "Completion") -> str:
    """Speed, and how much of the memory's bandwidth decoding used: each token reads every weight once."""
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
        achieved = read * speed
        lines.append(
            f"{'weights read':<16}{achieved / 1e9:.1f} GB/s, {achieved / best:.0%} of the {best / 1e9:.1f} GB/s "
            "measured here"
        )
    return "\n".join(lines)
