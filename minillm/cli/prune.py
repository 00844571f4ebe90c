"""`minillm prune`: make a model smaller, or its matrices sparse, with a text in view."""

from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UserError
from .completion import ModelName
from .terminal import bar

if TYPE_CHECKING:
    from ..checkpoint.loader import Checkpoint
    from ..lm import LM
    from ..quant.quantised import Progress


@click.command("prune", short_help="Make a model smaller, or sparse.")
@click.argument("model", type=ModelName())
@click.option("--layers", type=int, help="How many layers go: those that change least.")
@click.option("--heads", type=float, help="Which share of the heads goes, and of their keys.")
@click.option("--ffn", type=float, help="Which share of the feed-forward channels goes.")
@click.option("--sparsity", metavar="SHARE|2:4", help="Which share of each matrix becomes zero.")
@click.option("--method", help="How: sparsegpt (the default), wanda or magnitude.")
@click.option("--recover", type=click.IntRange(2), metavar="STEPS", help="Learn again from MODEL for so long.")
@click.option("--text", type=click.Path(path_type=Path), help="The text to judge by, and to learn from again.")
@click.option("-o", "--output", "target", required=True, type=click.Path(path_type=Path), help="What to write.")
def command(
    model: str,
    layers: int | None,
    heads: float | None,
    ffn: float | None,
    sparsity: str | None,
    method: str | None,
    recover: int | None,
    text: Path | None,
    target: Path,
) -> None:
    """Write a smaller MODEL: a .gguf file if the output is called so, else a folder, of which MODEL must be one.
    What goes is decided by a text, by default 93 kB of recipes and scripture; one like those that the model is for
    does better. Zeros make no file smaller and nothing faster here. --recover teaches by what MODEL says of the
    text, else of texts that it writes itself; a stopped run goes on.

    \b
    Examples:
      minillm prune tiny-transformer --ffn 0.5 --recover 200 -o smaller
      minillm prune smollm2-135m --layers 5 --text book.txt -o shallow.gguf
      minillm prune tiny-transformer --sparsity 0.5 --method wanda -o sparse
    """
    shares = {"--layers": layers, "--heads": heads, "--ffn": ffn, "--sparsity": sparsity}
    if all(one is None for one in shares.values()):
        raise UserError(f"nothing is to go; give one of {', '.join(shares)}")
    if sparsity is not None and recover is not None:
        raise UserError("--recover would fill the zeros of --sparsity again; leave one of them out")
    if sparsity is None and method is not None:
        raise UserError("--method says how --sparsity is reached; give that too, or leave it out")
    from ..checkpoint.origin import open_origin
    from ..evaluate.corpus import Corpus
    from ..lm import find_model, load

    checkpoint, lm = open_origin(find_model(model), target), load(model)
    if lm.tokenizer is None:
        raise UserError(f"{model} has no tokenizer, so there is no text to judge it by")
    texts = None if text is None else ["".join(document) for document in Corpus.in_file(text).documents()]
    with bar() as progress:
        pruned, config, kept = prune(lm, texts, layers, heads, ffn, sparsity, method, progress)
        values = {} if target.suffix == ".gguf" else description(checkpoint, config, kept)
        part = None
        if recover is not None:
            job = sha256(repr((model, layers, heads, ffn, recover, texts)).encode()).hexdigest()[:8]
            part = target.with_name(f"{target.name}.{job}")
            pruned = recovered(lm, pruned, texts, recover, part, progress)
    write(checkpoint, target, pruned, config, values)
    if part is not None:
        part.unlink()
    click.echo(summary(lm, pruned, kept, target))


def prune(
    lm: "LM",
    texts: list[str] | None,
    layers: int | None,
    heads: float | None,
    ffn: float | None,
    sparsity: str | None,
    method: str | None,
    progress: "Progress",
) -> tuple[Any, Any, list[int]]:
    """The model without what is to go, its config, and which of its layers stay."""
    from ..compress.calibration import windows
    from ..compress.methods import inputs_of
    from ..compress.prune import without_channels, without_heads, without_layers
    from ..compress.sparse import sparsified
    from ..texts import calibration

    assert lm.tokenizer is not None
    pruned, config, kept = lm.model, lm.config, list(range(len(lm.config.layers)))

    def inputs() -> dict[str, Any]:
        """What goes into every matrix of the model as it is by now."""
        return inputs_of(pruned, lm.tokenizer, texts, lm.config.context, None, progress)

    if layers is not None:
        batches = windows(lm.tokenizer, texts or calibration(), lm.config.context)
        pruned, config, kept = without_layers(pruned, config, layers, batches)
    if heads is not None:
        pruned, config = without_heads(pruned, config, heads, inputs())
    if ffn is not None:
        pruned, config = without_channels(pruned, config, ffn, inputs())
    if sparsity is not None:
        share, group = (0.5, 4) if sparsity == "2:4" else (number(sparsity), None)
        pruned = sparsified(pruned, inputs(), method or "sparsegpt", share, group, progress)
    return pruned, config, kept


def recovered(lm: "LM", pruned: Any, texts: list[str] | None, steps: int, part: Path, progress: "Progress") -> Any:
    """The pruned model after its lessons, which go on from `part`."""
    try:
        from ..compress import distill
    except ModuleNotFoundError as error:
        raise UserError(f"--recover needs {error.name}; run: pip install 'minillm[train]'") from None

    assert lm.tokenizer is not None
    if texts is None:
        lessons = distill.written(lm.model, lm.tokenizer, lm.config.context, progress=progress)
    else:
        lessons = distill.given(lm.tokenizer, texts, lm.config.context)
    try:
        return distill.recovered(pruned, lm.model, lessons, steps, part, progress=progress)
    except KeyboardInterrupt:
        if part.exists():
            click.echo(f"what was learned is kept in {part}; the same command goes on", err=True)
        raise


def description(checkpoint: "Checkpoint", config: Any, kept: list[int]) -> dict[str, Any]:
    """The entries of config.json for the new model; a GGUF file is checked when it is written."""
    from ..checkpoint.jsonfile import read_json
    from ..compress.prune import described

    values = read_json(Path(checkpoint.source.where) / "config.json")
    return described(values, checkpoint.config, config, kept, checkpoint.arch)


def write(checkpoint: "Checkpoint", target: Path, model: Any, config: Any, values: dict[str, Any]) -> None:
    """Write the model as its name says, in as many bits as its origin had or in more."""
    from ..checkpoint.folder_writer import write_folder
    from ..checkpoint.gguf_writer import write_gguf
    from ..checkpoint.origin import other_files, tokenizer_of

    source = checkpoint.source
    types = {source.dtype(name) for name in source.names() if len(source.shape(name)) > 1}
    if target.suffix == ".gguf":
        dtype = "F32" if types & {"F32", "BF16"} else "F16"
        write_gguf(target, model, config, checkpoint.arch, tokenizer=tokenizer_of(checkpoint), dtype=dtype)
        return
    dtype = "BF16" if types == {"BF16"} else "F16" if types == {"F16"} else "F32"
    write_folder(target, model, values, arch=checkpoint.arch, dtype=dtype, more=other_files(checkpoint))


def summary(lm: "LM", pruned: Any, kept: list[int], target: Path) -> str:
    """What became of the model, in two or three lines."""
    import jax
    import numpy as np

    from ..checkpoint.origin import size_of

    before, after = (sum(leaf.size for leaf in jax.tree.leaves(one)) for one in (lm.shapes, pruned))
    lines = [f"{before:,} -> {after:,} parameters ({after / before:.0%})"]
    matrices = [np.asarray(leaf) for leaf in jax.tree.leaves(pruned.blocks) if leaf.ndim > 1]
    zeros = sum(np.sum(one == 0) for one in matrices) / sum(one.size for one in matrices)
    if zeros > 0.01:
        lines.append(f"{zeros:.1%} of the numbers in the matrices of its blocks are zero")
    if len(kept) < len(lm.config.layers):
        lines.append(f"layers that stay: {', '.join(map(str, kept))} of 0 to {len(lm.config.layers) - 1}")
    return "\n".join([*lines, f"{size_of(target) / 1e6:.1f} MB in {target}"])


def number(text: str) -> float:
    """A share; UserError if it is none."""
    try:
        return float(text)
    except ValueError:
        raise UserError(f"--sparsity is {text!r}, expected a share such as 0.5, or 2:4") from None
