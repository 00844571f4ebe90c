"""`minillm info`: what is in a checkpoint."""

import re
from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from .completion import ModelName
from .terminal import printable, size

if TYPE_CHECKING:
    from ..checkpoint.source import TensorSource
    from ..config import Config
    from ..model import Model
    from ..tokenizer import Tokenizer

KINDS = {"MLP": "feed-forward", "MoE": "experts"}  # other blocks are called by the words of their names


@click.command("info", short_help="Show what is in a checkpoint.")
@click.argument("model", type=ModelName())
def command(model: str) -> None:
    """Show what is in MODEL, a name, a .gguf file or a folder: its tensors, architecture and tokenizer, what it
    remembers of a text, and its parameters with the memory they take, by part.

    \b
    Examples:
      minillm info smollm2-135m
      minillm info tiny-hybrid
    """
    from ..checkpoint.loader import open_checkpoint
    from ..checkpoint.origin import size_of
    from ..lm import find_model

    path = find_model(model)
    checkpoint = open_checkpoint(path)
    shapes = checkpoint.shapes()  # a file that would not load is not described as if it did
    config, source, tokenizer = checkpoint.config, checkpoint.source, checkpoint.tokenizer()
    stored = sum(source.nbytes(name) for name in source.names())
    rows = [
        ("file", source.where),
        ("architecture", f"{config.arch}, {len(config.layers)} layers"),
        ("sizes", f"d {config.d}, v {config.v}"),
        *layers(config),
        ("context", f"{config.context} tokens"),
        ("remembers", remembered(shapes, config.context)),
        *tokens(tokenizer, config),
        ("on disk", f"{size(size_of(path))}, of which {size(stored)} are {len(source.names())} tensors"),
        *in_float32(checkpoint),
    ]
    lines = [*tensors(source), "", *(f"{name:<17}{value}" for name, value in rows), "", *parts(shapes)]
    click.echo(printable("\n".join(lines)))


def tensors(source: "TensorSource") -> Iterator[str]:
    """What is stored, a line each."""
    shown = {name: " ".join(name.split()) for name in sorted(source.names(), key=natural)}  # it can be anything
    width = max(map(len, shown.values()), default=0)
    yield f"{'tensor':<{width}}{'shape':>18}{'type':>7}{'bytes':>16}"
    for name, line in shown.items():
        shape = " x ".join(str(n) for n in source.shape(name))
        yield f"{line:<{width}}{shape:>18}{source.dtype(name):>7}{source.nbytes(name):>16,}"


def in_float32(checkpoint: Any) -> Iterator[tuple[str, str]]:
    """Tensors in few bits that cannot stay so in memory, and why."""
    from ..checkpoint.prequantised import widened

    for reason, names in widened(checkpoint).items():
        yield "in float32", f"{len(names)} quantised tensors, such as {names[0]}: {reason}"


def parts(shapes: "Model") -> Iterator[str]:
    """The parameters of each part of the model, the memory they take once it is loaded, and the bits of each."""
    import jax

    from ..quant import by_place, is_weight

    dense = jax.jit(lambda weight: weight.dense())  # for its shape only; traced once for layers that are alike
    found: dict[str, tuple[int, int]] = {}
    for place, leaf in by_place(shapes)[0]:
        name, (parameters, nbytes) = part_of(place, shapes), found.get(part_of(place, shapes), (0, 0))
        numbers = (jax.eval_shape(dense, leaf) if is_weight(leaf) else leaf).size
        memory = sum(one.size * one.dtype.itemsize for one in jax.tree.leaves(leaf))
        found[name] = parameters + numbers, nbytes + memory
    whole = tuple(map(sum, zip(*found.values(), strict=True)))
    yield f"{'part':<17}{'parameters':>18}{'in memory':>12}{'bits each':>11}"
    for name, (parameters, nbytes) in (found | {"all": whole}).items():
        yield f"{name:<17}{parameters:>18,}{size(nbytes):>12}{8 * nbytes / parameters:>11.4g}"
    if shapes.head is None:
        yield f"{'head':<17}tied to the embedding"


def part_of(place: str, shapes: "Model") -> str:
    """Which part of the model a parameter belongs to, by its place such as blocks[3].down."""
    block = re.match(r"blocks\[(\d+)\]", place)
    if "norm" in place:
        return "norms"
    if block:
        return kind(shapes.blocks[int(block[1])])
    return "head" if place.startswith("head") else "embedding"


def kind(block: Any) -> str:
    """What a block, or its description, is called."""
    name = type(block).__name__.removesuffix("Spec")
    return KINDS.get(name) or " ".join(re.findall(r"[A-Z]+[a-z\d]*", name)).lower()


def tokens(tokenizer: "Tokenizer | None", config: "Config") -> Iterator[tuple[str, str]]:
    """What there is to say of the tokenizer."""
    from ..tokenizer import Bytes

    if tokenizer is None:
        yield "tokenizer", "none: prompts must be token ids"
        return
    names = {i: name for name, i in tokenizer.backend.vocabulary().items()}
    library = "byte-level BPE" if isinstance(tokenizer.backend, Bytes) else "sentencepiece"
    template = "a chat template" if tokenizer.chat_template else "no chat template"
    yield "tokenizer", f"{library}, {len(names):,} pieces, {template}"
    for what, ids in (("begins with", tokenizer.encode("")), ("ends at", {*config.eos, *tokenizer.ends})):
        yield what, ", ".join(f"{i} {names.get(i, '')!r}" for i in sorted(ids)) or "nothing"


def layers(config: "Config") -> Iterator[tuple[str, str]]:
    """Each kind of block, with the layers that have it."""
    kinds: dict[Any, list[int]] = {}
    for i, layer in enumerate(config.layers):
        for spec in layer:
            kinds.setdefault(spec, []).append(i)
    for spec, where in kinds.items():
        some = "" if len(where) == len(config.layers) else f" (layer{'s' * (len(where) > 1)} {spans(where)})"
        yield kind(spec), choices(spec) + some


def choices(spec: Any) -> str:
    """What a block's description says, where it is not the default."""
    parts = []
    for one in fields(spec):
        value = getattr(spec, one.name)
        if one.name == "rope":
            parts.append(turned(value))
        elif isinstance(value, float) and value != one.default:
            parts.append(f"{one.name} {value:.4g}")
        elif value != one.default:
            parts.append(one.name if value is True else f"{one.name} {value}")
    return ", ".join(parts)


def turned(rope: Any) -> str:
    """Which positions a block knows."""
    if rope is None:
        return "no rope"
    kind = "" if rope.recipe.kind == "default" else f" {rope.recipe.kind}"
    return f"rope{kind} of base {rope.recipe.theta:g} on {2 * len(rope.freqs)} channels"


def spans(numbers: list[int]) -> str:
    """0, 1, 2, 5 -> 0-2, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def remembered(shapes: "Model", context: int) -> str:
    """What a sequence costs in memory: at the whole context, and for each token more."""
    from ..cache import StateSpec

    at_end, before = (shapes.state_bytes(StateSpec(1, length)) for length in (context, max(context - 1, 1)))
    return f"{size(at_end)} for {context} tokens, {size(at_end - before)} for one more, as float32"


def natural(name: str) -> list[str | int]:
    """A sort key by which layer 10 comes after layer 9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
