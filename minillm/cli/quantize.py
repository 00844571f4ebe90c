"""`minillm quantize`: write a model in few bits."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .completion import ModelName
from .terminal import bar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..checkpoint.loader import Checkpoint
    from ..lm import LM
    from ..quant.quantised import Change


@click.command("quantize", short_help="Write a model in few bits.")
@click.argument("model", type=ModelName())
@click.argument("recipe")
@click.option(
    "-o", "--output", "target", required=True, type=click.Path(path_type=Path), help="A folder, or FILE.gguf."
)
@click.option(
    "--text", type=click.Path(path_type=Path), help="Calibrate with this text instead of the bundled one."
)
def command(model: str, recipe: str, target: Path, text: Path | None) -> None:
    """Write MODEL with its matrices as RECIPE says: int4-g32, nvfp4, w8a8, q4_k …, or several by name.

    A folder becomes a folder, which minillm opens like any other, or a .gguf file, which llama.cpp runs too; a
    .gguf file becomes such a file.

    \b
    Examples:
      minillm quantize smollm2-135m q4_k,embed=q8_0 -o small.gguf
      minillm quantize tiny-transformer awq:int4-g32 -o small --text notes.txt
      minillm quantize tiny-transformer f16 -o tiny.gguf

    A calibrated recipe (gptq, awq, smooth, imatrix) that was stopped goes on.
    """
    from ..checkpoint.origin import open_origin, size_of
    from ..evaluate.corpus import Corpus
    from ..lm import find_model, load
    from ..quant.quantised import summary
    from ..quant.rules import read_rules

    path = find_model(model)
    checkpoint = open_origin(path, target)
    texts = None if text is None else ["".join(document) for document in Corpus.in_file(text).documents()]
    part = target.with_name(target.name + ".part") if any(rule.method for rule in read_rules(recipe)) else None
    with bar() as progress:
        lm, changes = load(model).quantize(recipe, texts, folder=part, progress=progress)
    write(checkpoint, lm, changes, target)
    if part is not None:
        shutil.rmtree(part)
    click.echo(summary(recipe, changes))
    click.echo(f"{size_of(path) / 1e6:.1f} MB -> {size_of(target) / 1e6:.1f} MB in {target}")


def write(checkpoint: "Checkpoint", lm: "LM", changes: "Sequence[Change]", target: Path) -> None:
    """Write the model as a GGUF file if it is called so, else as a folder."""
    from ..checkpoint.gguf_writer import write_gguf
    from ..checkpoint.jsonfile import read_json
    from ..checkpoint.origin import other_files, tokenizer_of
    from ..checkpoint.quantised_folder import write_quantised

    if target.suffix == ".gguf":
        write_gguf(target, lm.model, lm.config, checkpoint.arch, tokenizer=tokenizer_of(checkpoint))
        return
    values = read_json(Path(checkpoint.source.where) / "config.json")
    write_quantised(target, lm.model, changes, values, other_files(checkpoint))
