"""`minillm generate`: continue a prompt."""

import gc
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..errors import UserError
from ..folders import program_folder
from .brief import Brief
from .completion import ModelName
from .figures import closing_line, flat, statistics
from .input_file import BATCH, run_file
from .mesh_options import mesh_of, mesh_options
from .sampling_options import sampling_options
from .terminal import interactive, leave, meter, note, printable, status

if TYPE_CHECKING:
    from ..chat import Message
    from ..lm import LM, Completion, Stream


LARGEST_PROMPT = 64 << 20  # bytes
BUNDLED, OPENING = "tiny-transformer", "Recipe: Tomato Soup"
GENERAL = "smollm2-135m"
INPUT = 'Many prompts: lines of JSON such as "a prompt" or {"prompt": "…", "max_tokens": 20}; - is standard input.'
DTYPE = click.Choice(
    ["float32", "bfloat16"]
)  # float16 ends at 65504, which what flows through large models exceeds
OFTEN = "--model --max-tokens --temperature --seed --chat --quant --json --help"


@click.command("generate", short_help="Continue a prompt.", cls=Brief, often=OFTEN)
@click.argument("prompt", required=False)
@click.option("-p", "--prompt", "named", metavar="PROMPT", help="The same as PROMPT alone.")
@click.option("-m", "--model", default=BUNDLED, type=ModelName(), show_default=True, help="Name, .gguf or folder.")
@click.option(
    "-n", "--max-tokens", metavar="N", default=256, show_default=True, help="Stop after this many tokens."
)
@sampling_options
@click.option(
    "--repeat-penalty", metavar="R", default=1.0, help="Above 1 discourages tokens already there; 1 is off."
)
@click.option("--seed", metavar="N", type=int, help="Draw the same text again; --json shows a run's.")
@click.option("--stop", multiple=True, help="End before this text; may be given more than once.")
@click.option("--chat", is_flag=True, help="Put PROMPT into the checkpoint's own chat template.")
@click.option("--system", metavar="TEXT", help="What the system says first, with --chat.")
@click.option("--quant", metavar="RECIPE", help="Weights in few bits: w8a8, int4-g32, q4_k …")
@click.option(
    "--dtype", default="float32", type=DTYPE, metavar="TYPE", help="float32 or bfloat16; float16 would overflow."
)
@mesh_options
@click.option("--draft", help="Guess by prompt-lookup, ngram, skip:K or a model.")
@click.option("--exact", is_flag=True, help="The same tokens to the bit with any --draft.")
@click.option("--cache", help="Memory: int8, fp8, kivi4, kivi2, sinks:N or h2o:N.")
@click.option("--lossy", is_flag=True, help="Let h2o go with --draft, --exact and --input.")
@click.option("--input", "source", type=click.Path(path_type=Path), help=INPUT)
@click.option(
    "--output", "target", type=click.Path(path_type=Path), help="The file for them; a run that was stopped goes on."
)
@click.option("--batch", metavar="N", type=click.IntRange(1), help=f"Lines of --input at once; else {BATCH}.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@click.option("--logprobs", metavar="N", type=click.IntRange(0), help="Print JSON a token, with the N likeliest.")
@click.option("--stats", is_flag=True, help="Show speed against this machine's memory bandwidth.")
def command(
    prompt: str | None,
    named: str | None,
    source: Path | None,
    target: Path | None,
    batch: int | None,
    as_json: bool,
    logprobs: int | None,
    stats: bool,
    **options: Any,
) -> None:
    """Continue PROMPT, or standard input if it is - or left out. The default model knows recipes and scripture,
    nothing else; `minillm list` shows others.

    \b
    Examples:
      minillm generate "Recipe: Tomato Soup"
      minillm generate --model smollm2-135m --chat "Name three colours."
      minillm generate --input prompts.jsonl --output texts.jsonl
    """
    gc.disable()  # a short-lived process: looking for cycles while reading a vocabulary takes 0.3 s
    asked = Asked(**{name: options.pop(name) for name in Asked._fields})
    check(asked, options["cache"], options["lossy"], logprobs)
    if named is not None:
        refuse({"PROMPT": prompt}, "with --prompt")
        prompt = named
    alone = {"PROMPT": prompt, "--draft": options["draft"], "--logprobs": logprobs}
    alone |= {"--json": as_json or None, "--stats": stats or None}
    if source or target:
        refuse(alone, "with --input")
        run_file(asked, source, target, batch, options)
    else:
        refuse({"--batch": batch}, "without --input")
        text = read_prompt(prompt, OPENING if asked.model == BUNDLED else None)
        run_text(asked, text, as_json, logprobs, stats, options)


def run_text(
    asked: "Asked", text: str, as_json: bool, logprobs: int | None, stats: bool, options: dict[str, Any]
) -> None:
    """Continue one text: shown as it comes, or as JSON once it has ended."""
    as_text = not as_json and logprobs is None
    watched = as_text and interactive()
    lm, stream = start(text, asked, options)
    if watched:
        click.echo(click.style(printable(text), dim=True), nl=asked.chat)
    completion = finished(stream, None if not as_text else printable if watched else str)
    for line in [] if as_text else values(lm, stream.plan.prompt, completion, as_json, logprobs):
        click.echo(json.dumps(line, ensure_ascii=False))
    if watched:
        say_goodbye(lm, asked, completion, stats, options)
    if stats:
        click.echo(statistics(lm, completion), err=True)
    if completion.finish_reason == "interrupted":
        leave(130)


class Asked(NamedTuple):
    """Which model is asked, and how a text is put to it."""

    model: str
    quant: str | None
    dtype: str
    mesh: str | None
    chat: bool
    system: str | None

    def opened(self, progress: Callable[[str, int, int], None] = lambda *_: None) -> "LM":
        """The model; progress is told how far its weights have been read."""
        return opened(self.model, self.quant, progress, self.dtype, self.mesh)

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


def refuse(given: Mapping[str, Any], where: str) -> None:
    """UserError if something was given that does nothing there."""
    for name, value in given.items():
        if value is not None:
            raise UserError(f"{name} does not go {where}; leave it out")


def finished(stream: "Stream", shown: Callable[[str], str] | None) -> "Completion":
    """Let the text come until it ends, or until Ctrl-C: written piece by piece as it is shown, or not at all."""
    try:
        for piece in stream:
            if shown is not None:
                click.echo(shown(piece), nl=False)
    except KeyboardInterrupt:
        stream.close()
    if shown is not None:
        click.echo()
    return stream.completion()


def values(
    lm: "LM", prompt: Sequence[int], completion: "Completion", as_json: bool, logprobs: int | None
) -> list[dict[str, Any]]:
    """The lines of JSON: the completion in one, or a line a token with its log probability, or these within it."""
    scored = [] if logprobs is None else judged(lm, prompt, completion.tokens, logprobs)
    if not as_json:
        return scored
    return [flat(completion) | ({} if logprobs is None else {"logprobs": scored})]


def say_goodbye(lm: "LM", asked: Asked, completion: "Completion", stats: bool, options: dict[str, Any]) -> None:
    """What somebody at a terminal is told at the end: how it went, and what else there is."""
    from ..checkpoint.pull import model_path

    tries = {
        "--chat": asked.chat or lm.tokenizer is None or lm.tokenizer.chat_template is None,
        "--stats": stats,
        "--temperature 0": options["temperature"] == 0,
    }
    note(closing_line(completion, options["max_tokens"], [option for option, used in tries.items() if not used]))
    if asked.model == BUNDLED:
        get = f"minillm chat {GENERAL}" if model_path(GENERAL).is_file() else f"minillm pull {GENERAL}"
        note(f"{BUNDLED} knows recipes and scripture; for a general model: {get}")


def judged(lm: "LM", prompt: Sequence[int], tokens: list[int], n: int) -> list[dict[str, Any]]:
    """Each token with its log probability, and the n that the model finds likeliest in its place."""
    from ..evaluate.logprobs import log_probs

    assert lm.tokenizer is not None
    read = lm.tokenizer.backend.bytes_of

    def named(token: int, logprob: float) -> dict[str, Any]:
        return {"token": read(token).decode(errors="replace"), "id": token, "logprob": logprob}

    found = log_probs(lm.model, prompt, tokens, n)
    return [named(one.id, one.logprob) | {"top": [named(*other) for other in one.top]} for one in found]


def read_prompt(prompt: str | None, opening: str | None = None) -> str:
    """The prompt, from standard input if it is `-` or missing; UserError if it is not UTF-8.

    Somebody at a terminal who gives none gets the opening, if there is one.
    """
    if prompt not in (None, "-"):
        return prompt
    if sys.stdin is None:
        raise UserError("standard input is closed; give a text")
    if prompt is None and sys.stdin.isatty():
        if opening is None:
            raise UserError('there is no text; give one, such as "Once upon a time", or - to type it')
        return opening
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
    longest = max(len(doing), len(meter("reading weights", 9_999_000_000, 9_999_000_000)))
    room = get_terminal_size().columns - longest - 8  # less a spinner, " … ", and ^C
    first_line = printable(prompt).strip().partition("\n")[0]
    begun = f"{first_line[:room]} … " if room > 0 else ""
    with status(begun + doing) as say:

        def tell(what: str, done: int, of: int) -> None:
            say(begun + (meter(what, done, of) if done < of else doing))

        lm = asked.opened(tell)
        stream = lm.stream(asked.put(prompt, lm), **options)
        stream.wait()
    return lm, stream


def opened(
    model: str,
    quant: str | None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
    dtype: str = "float32",
    mesh: str | None = None,
) -> "LM":
    """The model, spread and quantised if so asked; progress is told how far its weights have been read."""
    from ..lm import load

    lm = load(model, dtype=dtype, mesh=mesh_of(mesh), progress=progress)
    if quant is None:
        return lm
    from jax import process_index

    from ..quant.quantised import summary

    lm, changes = lm.quantize(quant)
    if process_index() == 0:
        note(summary(quant, changes))
    return lm
