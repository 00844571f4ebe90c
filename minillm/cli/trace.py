"""`minillm trace`: watch a prompt go through a model."""

from pathlib import Path

import click

from ..errors import UserError
from .generate import BUNDLED, read_prompt
from .terminal import status


@click.command("trace", short_help="Watch a prompt go through a model.")
@click.argument("prompt", required=False)
@click.option(
    "-o", "--output", "target", required=True, type=click.Path(path_type=Path), help="The .html to write."
)
@click.option("--model", default=BUNDLED, show_default=True, help="A name, a .gguf file, or a folder.")
@click.option("--max-tokens", default=12, show_default=True, help="Stop after this many tokens, 32 at most.")
@click.option("--temperature", default=0.7, show_default=True, help="0 always takes the likeliest token.")
@click.option("--top-k", default=0, help="Keep the k likeliest tokens; 0 is off.")
@click.option("--top-p", default=1.0, help="Keep the likeliest up to this probability; 1 is off.")
@click.option("--min-p", default=0.0, help="Keep tokens this likely beside the best; 0 is off.")
@click.option("--seed", default=0, show_default=True, help="Draw another text.")
@click.option("--chat", is_flag=True, help="Put PROMPT into the checkpoint's own chat template.")
@click.option("--quant", metavar="RECIPE", help="Weights in few bits: w8a8, int4-g32, q4_k …")
@click.option("--draft", help="Guess by prompt-lookup, ngram, skip:K or a model.")
def command(
    prompt: str | None,
    target: Path,
    model: str,
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
    chat: bool,
    quant: str | None,
    draft: str | None,
) -> None:
    """Continue PROMPT, and write a page that steps through it: attention, experts, states, the logit lens.

    PROMPT has at most 256 tokens; it comes from standard input if it is - or left out. The page is one file, opens
    in any browser and asks for nothing from a network.

    \b
    Examples:
      minillm trace "Recipe: Tomato Soup" -o trace.html
      minillm trace --model tiny-moe "Recipe: Tomato Soup" -o trace.html
      minillm trace --model smollm2-135m --quant q4_k --temperature 0 "The capital of France is" -o trace.html
    """
    if not target.parent.is_dir():
        raise UserError(f"{target.parent}: no such folder for {target.name}; make it first")
    text = read_prompt(prompt, model)
    from ..lm import load
    from ..sampling import new_sampler

    sampler = new_sampler(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    with status(f"loading {model}") as say:
        lm, errors = load(model), {}
        from ..trace import page_of, rounding_errors, watch, write_page

        if quant is not None:
            say(f"rounding to {quant}")
            exact, (lm, _) = lm.model, lm.quantize(quant)
            errors = rounding_errors(exact, lm.model)
        ids = lm.chat_ids([{"role": "user", "content": text}]) if chat else text
        say("watching")
        seen = watch(lm, ids, sampler, max_tokens, lm.drafter(draft))
        say("writing the page")
        html = page_of(seen, model, errors)
        write_page(target, html)
    passes, tokens = len(seen.passes), len(seen.text) - len(seen.prompt)
    click.echo(f"{passes} passes, {len(seen.prompt)} + {tokens} tokens, {len(html) / 1e6:.1f} MB in {target}")
