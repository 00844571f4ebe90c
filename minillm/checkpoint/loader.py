"""From files on disk to a config, a tokenizer and a model.

`open_checkpoint` reads headers only, so that `minillm info` is instant; `Checkpoint.model` reads the weights.
"""

import os
from array import array
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .. import archs
from ..archs import Arch
from ..archs.tensors import Entry, Stack, View
from ..blocks.params import Shape, stacked
from ..config import Config, Fields
from ..errors import UserError
from ..model import Model
from ..parallel import Spread, spread
from ..parallel.mesh import AnyMesh
from ..quant import as_weights, in_dtype
from ..quant.quantised import Progress
from ..tokenizer import Tokenizer
from .gguf import GGUF
from .jsonfile import read_json
from .prequantised import Prequantised, coded, layout_of, like, parameter
from .quantised_folder import QuantisedFolder, own_weights
from .safetensors import CODES, PICKLED, WORDS, Safetensors, pickle_hint
from .source import Index, TensorSource
from .vocabulary import tokenizer_from_folder, tokenizer_from_gguf


@dataclass(frozen=True)
class Unread:
    """A parameter whose numbers are read when a slice of it is wanted, and not before."""

    entry: Entry
    view: View
    dtype: Any

    @property
    def shape(self) -> Shape:
        """Of all of it."""
        return self.entry.shape(self.view)

    def __getitem__(self, index: Index) -> np.ndarray:
        return self.entry.read(self.view, index).astype(self.dtype)


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint. `shapes` checks that its tensors fit the architecture, `model` reads them."""

    source: TensorSource
    config: Config
    arch: Arch
    entries: Mapping[str, Entry]

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer; None if the folder has none, and the model then works on token ids."""
        if isinstance(self.source, GGUF):
            return tokenizer_from_gguf(self.source.metadata, self.source.where)
        return tokenizer_from_folder(Path(self.source.where))

    def model(self, progress: Progress = lambda *_: None, dtype: str | None = None) -> Model:
        """Read the weights on all cores but one, which is left for compiling meanwhile.

        They are float32, but for those in few bits that can stay so. progress is told how many bytes of the files
        have been read, and of how many; dtype is another type for all, where none is in few bits.
        """
        pool, reads, sizes, done = ThreadPoolExecutor(max((os.cpu_count() or 1) - 1, 1)), {}, {}, 0

        def ask(name: str, layer: int | None, *shapes: Shape, init):
            view, entry = View(self.source, self.config, layer), self.entry(name)
            sizes[name, layer] = sum(self.source.nbytes(one) for one in entry.names(view))
            reads[name, layer] = pool.submit(lambda: in_dtype(parameter(entry, view), dtype))
            return stacked(shapes)

        def take(name: str, layer: int | None, *shapes: Shape, init):
            nonlocal done
            found = reads[name, layer].result()
            done += sizes[name, layer]
            progress("reading weights", done, sum(sizes.values()))
            return found

        try:
            Model.build(self.config, ask)
            return as_weights(Model.build(self.config, take))
        finally:
            pool.shutdown(cancel_futures=True)  # after an error, nobody needs the rest

    def on_mesh(self, mesh: AnyMesh, progress: Progress, dtype: str = "float32") -> Spread:
        """The model on a mesh, of which a process reads what its own devices hold; arguments as in `model`."""
        sizes, done = {}, 0

        def ask(name: str, layer: int | None, *shapes: Shape, init):
            view = View(self.source, self.config, layer)
            sizes[name, layer] = sum(self.source.nbytes(one) for one in self.entry(name).names(view))

        def take(name: str, layer: int | None, *shapes: Shape, init):
            nonlocal done
            done += sizes[name, layer]
            progress("reading weights", done, sum(sizes.values()))
            view, entry = View(self.source, self.config, layer), self.entry(name)
            return coded(entry, view, partial(Unread, entry)) or Unread(entry, view, dtype)

        Model.build(self.config, ask)
        return spread(self.config, mesh, take)

    def entry(self, name: str) -> Entry:
        """How a parameter is made; UserError if the architecture does not say."""
        if name not in self.entries:
            raise UserError(f"{self.source.where}: the {self.config.arch} architecture names no tensor for {name}")
        return self.entries[name]

    def shapes(self) -> Model:
        """The model with shapes in place of weights; UserError if a tensor is missing, misshapen or unknown."""
        used = set()

        def get(name: str, layer: int | None, *shapes: Shape, init):
            view, entry, whole = View(self.source, self.config, layer), self.entry(name), stacked(shapes)
            pieces: list[tuple[Entry, Shape]] = [(entry, whole.shape)]
            if isinstance(entry, Stack) and len(entry.entries) == len(shapes):  # then errors can name the one
                pieces = list(zip(entry.entries, shapes, strict=True))
            for piece, expected in pieces:
                if piece.shape(view) != expected:
                    raise UserError(
                        f"{self.source.where}: {described(piece, view)}, but the config asks for {list(expected)}"
                    )
            used.update(entry.names(view))
            return like(entry, view, whole)

        model = as_weights(Model.build(self.config, get))
        n = len(self.config.layers)
        harmless = {name.format(i=i, n=n) for name in self.arch.HARMLESS_TENSORS for i in range(n)}
        for name in self.source.names():
            if name not in used and not any(fnmatchcase(name, pattern) for pattern in harmless):
                raise UserError(
                    f"{self.source.where}: tensor {name} is not part of the {self.config.arch} architecture"
                )
        return model


def described(entry: Entry, view: View) -> str:
    """An entry's tensors, with the shape they have in the file."""
    first, *others = entry.names(view)
    more = f" (and {len(others)} more)" if others else ""
    return f"tensor {first}{more} has shape {list(view.source.shape(first))}"


def open_checkpoint(
    path: str | Path, context: int | None = None, arch: Arch | None = None
) -> Checkpoint | QuantisedFolder:
    """Open a `.gguf` file, or a folder with `config.json` and safetensors; UserError says what is wrong.

    context is the longest sequence wanted, by default what the model was made for; arch is the architecture to
    read it by, by default the one in `archs` that bears the checkpoint's name for it.
    """
    path = Path(path)
    if path.is_dir():
        return from_folder(path, context, arch)
    if path.is_file() and path.suffix in (".safetensors", *PICKLED):
        expected = "a .gguf file, or a folder with config.json and safetensors"
        raise UserError(f"{path}: is one file of a checkpoint, expected {expected}{pickle_hint(path.parent)}")
    if path.is_file():
        return from_gguf(GGUF(path), context, arch)
    raise UserError(f"{path}: no such file or folder")


def from_folder(folder: Path, context: int | None, arch: Arch | None) -> Checkpoint | QuantisedFolder:
    """A Hugging Face checkpoint folder, or one that was quantised here."""
    where = str(folder / "config.json")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: has no config.json, expected a Hugging Face checkpoint folder")
    values = read_json(folder / "config.json")
    arch = arch or archs.find_hf(values.get("model_type"), f"{where}: model_type")
    weights, layout = own_weights(values, where), layout_of(values, where)
    config = arch.config_from_hf(Fields(values, where, context))
    if weights is not None:
        return QuantisedFolder(Safetensors(folder, CODES), config, arch, weights)
    if layout is not None:
        return Checkpoint(Prequantised(Safetensors(folder, WORDS), layout), config, arch, arch.HF_TENSORS)
    return Checkpoint(Safetensors(folder), config, arch, arch.HF_TENSORS)


# Up to three tokens end a text: of the text itself, of a turn, of a message.
END_KEYS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))


class GGUFSource(TensorSource, Protocol):
    """A GGUF file, or one that is about to be written."""

    metadata: dict[str, Any]


def from_gguf(source: GGUFSource, context: int | None, arch: Arch | None) -> Checkpoint:
    """A GGUF file."""
    name = source.metadata.get("general.architecture")
    arch = arch or archs.find_gguf(name, f"{source.where}: general.architecture")
    values = {
        key.removeprefix(f"{name}."): list(value) if isinstance(value, array) else value
        for key, value in source.metadata.items()
        if key.startswith(f"{name}.")
    }
    tokens = source.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list):
        values.setdefault("vocab_size", len(tokens))
    config = arch.config_from_gguf(Fields(values, f"{source.where}: {name}", context), source)
    ends = Fields(source.metadata, source.where)
    eos = tuple(dict.fromkeys(token for key in END_KEYS for token in ends.ids(key)))
    return Checkpoint(source, replace(config, eos=eos), arch, arch.GGUF_TENSORS)
