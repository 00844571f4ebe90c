"""`minillm generate`: continue a prompt."""

import dataclasses
import gc
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..errors import UserError
from ..folders import program_folder
from .completion import ModelName
from .input_file import BATCH, run_file
from .sampling_options import sampling_options
from .terminal import interactive, leave, meter, note, printable, status

if TYPE_CHECKING:
    from ..chat import Message
    from ..lm import LM, Completion, Stream


LARGEST_PROMPT = 64 << 20  # bytes
BUNDLED, OPENING = "tiny-transformer", "Recipe: Tomato Soup"
OTHERS = f"{BUNDLED} knows recipes and scripture; for a general model: minillm pull smollm2-135m"


@click.command("generate", short_help="Continue a prompt.")
@click.argument("prompt", required=False)
@click.option("--model", default=BUNDLED, type=ModelName(), show_default=True, help="Name, .gguf or folder.")
@click.option("--max-tokens", default=256, show_default=True, help="Stop after this many tokens.")
@sampling_options
@click.option("--repeat-penalty", default=1.0, help="Above 1 discourages tokens already there; 1 is off.")
@click.option("--seed", type=int, help="Draw the same text again; --json shows a run's.")
@click.option("--stop", multiple=True, help="End before this text; may be given more than once.")
@click.option("--chat", is_flag=True, help="Put PROMPT into the checkpoint's own chat template.")
@click.option("--system", metavar="TEXT", help="What the system says first, with --chat.")
@click.option("--quant", metavar="RECIPE", help="Weights in few bits: w8a8, int4-g32, q4_k …")
@click.option("--dtype", default="float32", help="Of weights and sums: float32 or bfloat16.")
@click.option("--draft", help="Guess by prompt-lookup, ngram, skip:K or a model.")
@click.option("--exact", is_flag=True, help="The same tokens to the bit with any --draft.")
@click.option("--cache", help="Memory: int8, fp8, kivi4, kivi2, sinks:N or h2o:N.")
@click.option("--lossy", is_flag=True, help="Let h2o go with --draft, --exact and --input.")
@click.option("--input", "source", type=click.Path(path_type=Path), help="Many prompts, as JSON lines.")
@click.option("--output", "target", type=click.Path(path_type=Path), help="The file for them.")
@click.option("--batch", type=click.IntRange(1), help=f"Lines of --input at once; else {BATCH}.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@click.option("--logprobs", metavar="N", type=click.IntRange(0), help="Print JSON a token, with the N likeliest.")
@click.option("--stats", is_flag=True, help="Show speed against this machine's memory bandwidth.")
def command(
    prompt: str | None,
    source: Path | None,
    target: Path | None,
    batch: int | None,
    as_json: bool,
    logprobs: int | None,
    stats: bool,
    **options: Any,
) -> None:
    """Continue PROMPT, or standard input (less one final line break) if it is - or left out. The default model
    knows recipes and scripture, nothing else; `minillm list` shows others.

    \b
    Examples:
      minillm generate "Recipe: Tomato Soup"
      minillm generate --model smollm2-135m "The capital of France is"
      minillm generate --model smollm2-135m --chat "Name three colours."
      minillm generate --input prompts.jsonl --output texts.jsonl

    A line of --input is "a prompt" or {"prompt": "…", "max_tokens": 20}; - is standard input. A run that was
    stopped goes on.
    """
    gc.disable()  # a short-lived process: looking for cycles while reading a vocabulary takes 0.3 s
    asked, together = Asked(**{name: options.pop(name) for name in Asked._fields}), source or target
    check(asked, options["cache"], options["lossy"], logprobs)
    alone = {"--draft": options["draft"], "--json": as_json, "--stats": stats, "--logprobs": logprobs is not None}
    unfit = {"PROMPT": prompt is not None, **alone} if together else {"--batch": batch}
    for name, given in unfit.items():
        if given:
            raise UserError(f"{name} does not go {'with' if together else 'without'} --input; leave it out")
    if together:
        del options["draft"]
        run_file(asked, source, target, batch, options)
        return
    text, as_text = read_prompt(prompt, asked.model), not as_json and logprobs is None
    shown = interactive() and as_text
    lm, stream = start(text, asked, options)
    if shown:
        click.echo(click.style(printable(text), dim=True), nl=asked.chat)
    try:
        for piece in stream:
            if as_text:
                click.echo(printable(piece) if shown else piece, nl=False)
    except KeyboardInterrupt:
        stream.close()
    completion = stream.completion()
    scored = [] if logprobs is None else judged(lm, stream.plan.prompt, completion.tokens, logprobs)
    if as_json:
        more = {} if logprobs is None else {"logprobs": scored}
        click.echo(json.dumps(flat(completion) | more, ensure_ascii=False))
    elif as_text:
        click.echo()
    else:
        for one in scored:
            click.echo(json.dumps(one, ensure_ascii=False))
    if shown:
        tries = {
            "--chat": asked.chat or lm.tokenizer is None or lm.tokenizer.chat_template is None,
            "--stats": stats,
            "--temperature 0": options["temperature"] == 0,
        }
        unused = [option for option, used in tries.items() if not used]
        click.echo(click.style(closing_line(completion, unused), dim=True), err=True)
        if asked.model == BUNDLED:
            click.echo(click.style(OTHERS, dim=True), err=True)
    if stats:
        click.echo(statistics(lm, completion), err=True)
    if completion.finish_reason == "interrupted":
        leave(130)


class Asked(NamedTuple):
    """Which model is asked, and how a text is put to it."""

    model: str
    quant: str | None
    dtype: str
    chat: bool
    system: str | None

    def opened(self, progress: Callable[[str, int, int], None] = lambda *_: None) -> "LM":
        """The model; progress is told how far its weights have been read."""
        return opened(self.model, self.quant, progress, self.dtype)

    def put(self, text: str, lm: "LM") -> str | list[int]:
        """The text as it is, or in a chat that it begins."""
        if not self.chat:
            return text
        said: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
        return lm.chat_ids([*said, {"role": "user", "content": text}])


def check(asked: Asked, cache: str | None, lossy: bool, logprobs: int | None) -> None:
    """UserError if an option would do nothing, or not what it says."""
    if asked.system is not None and not asked.chat:
        raise UserError("--system is a message of a chat; give --chat as well")
    if asked.quant is not None and asked.dtype != "float32":
        raise UserError("--quant makes few bits of float32; leave --dtype out")
    if lossy and not (cache or "").startswith("h2o"):
        raise UserError("--lossy lets --cache h2o:N go with other options; give that as well, or leave it out")
    if logprobs is not None and cache is not None:
        raise UserError("--logprobs are those of a model that remembers everything; leave --cache out")


def judged(lm: "LM", prompt: Sequence[int], tokens: list[int], n: int) -> list[dict[str, Any]]:
    """Each token with its log probability, and the n that the model finds likeliest in its place."""
    from ..evaluate.logprobs import log_probs

    assert lm.tokenizer is not None
    read = lm.tokenizer.backend.bytes_of

    def named(token: int, logprob: float) -> dict[str, Any]:
        return {"token": read(token).decode(errors="replace"), "id": token, "logprob": logprob}

    found = log_probs(lm.model, prompt, tokens, n)
    return [named(one.id, one.logprob) | {"top": [named(*other) for other in one.top]} for one in found]


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
    if not raw.removesuffix(b"\n"):
        raise UserError(f"standard input is empty, expected a text; or give a prompt, as {OPENING!r}")
    if len(raw) > LARGEST_PROMPT:
        raise UserError(f"standard input has more than {LARGEST_PROMPT} bytes, which no model here can read")
    try:
        return raw.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8: byte {error.start} is {raw[error.start]:#04x}") from None


def start(prompt: str, asked: Asked, options: dict[str, Any]) -> "tuple[LM, Stream]":
    """Load the model and generate the first piece of text, telling a terminal what takes the time."""
    programs = program_folder()
    try:
        first_run = not any(programs.iterdir())
    except OSError:  # it is not there, or not ours to see
        first_run = True
    doing = "compiling (first run only)" if first_run else f"loading {asked.model}, compiling what is new"
    first_line = printable(prompt).strip().partition("\n")[0][:60]
    with status(f"{first_line} … {doing}") as say:

        def tell(what: str, done: int, of: int) -> None:
            say(f"{first_line} … {meter(what, done, of) if done < of else doing}")

        lm = asked.opened(tell)
        stream = lm.stream(asked.put(prompt, lm), **options)
        stream.wait()
    return lm, stream


def opened(
    model: str,
    quant: str | None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
    dtype: str = "float32",
) -> "LM":
    """The model, quantised if so asked; progress is told how far its weights have been read."""
    from ..lm import load

    lm = load(model, dtype=dtype, progress=progress)
    if quant is None:
        return lm
    from ..quant.quantised import summary

    lm, changes = lm.quantize(quant)
    note(summary(quant, changes))
    return lm


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
