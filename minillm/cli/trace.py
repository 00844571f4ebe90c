"""`minillm trace`: watch a prompt go through a model."""

from pathlib import Path
from typing import Any

import click

from ..errors import UserError
from .completion import ModelName
from .generate import BUNDLED, read_prompt
from .sampling_options import sampling_options
from .terminal import counted, status


@click.command("trace", short_help="Watch a prompt go through a model.")
@click.argument("prompt", required=False)
@click.option(
    "-o", "--output", "target", required=True, type=click.Path(path_type=Path), help="The .html to write."
)
@click.option("-m", "--model", default=BUNDLED, type=ModelName(), show_default=True, help="Name, .gguf or folder.")
@click.option(
    "-n", "--max-tokens", metavar="N", default=12, show_default=True, help="Stop after so many, 32 at most."
)
@sampling_options
@click.option("--seed", metavar="N", default=0, show_default=True, help="Draw another text.")
@click.option("--chat", is_flag=True, help="Put PROMPT into the checkpoint's own chat template.")
@click.option("--quant", metavar="RECIPE", help="Weights in few bits: w8a8, int4-g32, q4_k …")
@click.option("--draft", help="Guess by prompt-lookup, ngram, skip:K or a model.")
@click.option(
    "--pages", "page_size", metavar="N", default=0, help="Remember in pages of so many tokens; 0 is no pages."
)
def command(
    prompt: str | None,
    target: Path,
    model: str,
    max_tokens: int,
    seed: int,
    chat: bool,
    quant: str | None,
    draft: str | None,
    page_size: int,
    **sampling: Any,
) -> None:
    """Continue PROMPT, or standard input if it is - or left out, and write a page that steps through it:
    attention, experts, states, the logit lens.

    \b
    Examples:
      minillm trace "Recipe: Tomato Soup" -o trace.html
      minillm trace --model tiny-moe "Recipe: Tomato Soup" -o trace.html
      minillm trace --model smollm2-135m --quant q4_k "Once upon a time" -o t.html
    """
    if not target.parent.is_dir():
        raise UserError(f"{target.parent}: no such folder for {target.name}; make it first")
    text = read_prompt(prompt)
    from ..lm import load
    from ..sampling import new_sampler

    sampler = new_sampler(seed=seed, **sampling)
    with status(f"loading {model}") as say:
        lm, errors, exact = load(model), {}, None
        from ..trace import page_of, rounding_errors, stream_errors, watch, write_page

        if quant is not None:
            say(f"rounding to {quant}")
            exact, (lm, _) = lm.model, lm.quantize(quant)
            errors = rounding_errors(exact, lm.model)
        ids = lm.chat_ids([{"role": "user", "content": text}]) if chat else text
        say("watching")
        seen = watch(lm, ids, sampler, max_tokens, lm.drafter(draft), page_size)
        say("writing the page")
        html = page_of(seen, model, errors, None if exact is None else stream_errors(seen, exact))
        write_page(target, html)
    passes, tokens = counted(len(seen.passes), "pass", "passes"), len(seen.text) - len(seen.prompt)
    click.echo(f"{passes}, {len(seen.prompt)} + {tokens} tokens, {len(html) / 1e6:.1f} MB in {target}")
