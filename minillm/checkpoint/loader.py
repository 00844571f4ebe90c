"""From files on disk to a config, a tokenizer and a model.

`open_checkpoint` reads headers only, so that `minillm info` is instant; `Checkpoint.model` reads the weights.
"""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from .. import archs
from ..archs.tensors import Entry, View
from ..config import Config, Fields
from ..errors import UserError
from ..model import Model
from ..tokenizer import Tokenizer
from .gguf import GGUF
from .jsonfile import read_json
from .safetensors import Safetensors
from .source import TensorSource
from .vocabulary import tokenizer_from_folder, tokenizer_from_gguf


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint. `shapes` checks that its tensors fit the architecture, `model` reads them."""

    source: TensorSource
    config: Config
    arch: archs.Arch
    entries: Mapping[str, Entry]

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer; None if the folder has none, and the model then works on token ids."""
        if isinstance(self.source, GGUF):
            return tokenizer_from_gguf(self.source.metadata, self.source.where)
        return tokenizer_from_folder(Path(self.source.where))

    def model(self) -> Model:
        """Read the weights, float32, on all cores but one, which is left for compiling meanwhile."""
        pool, reads = ThreadPoolExecutor(max((os.cpu_count() or 1) - 1, 1)), {}

        def ask(name: str, layer: int, *shapes: tuple[int, ...]):
            view = View(self.source, self.config, layer)
            reads[name, layer] = pool.submit(lambda: jax.device_put(self.entries[name].read(view)))
            return stacked(shapes)

        try:
            self.arch.build(self.config, ask)
            return self.arch.build(self.config, lambda name, layer, *shapes: reads[name, layer].result())
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C should not wait for the rest of a large model

    def shapes(self) -> Model:
        """The model with shapes in place of weights; UserError if a tensor is missing, misshapen or unknown."""
        used = set()

        def get(name: str, layer: int, *shapes: tuple[int, ...]):
            parts = self.entries[name].parts(View(self.source, self.config, layer))
            for (tensor, found), expected in zip(parts.items(), shapes, strict=True):
                if found != expected:
                    raise UserError(
                        f"{self.source.where}: tensor {tensor} has shape {list(found)}, "
                        f"but the config asks for {list(expected)}"
                    )
            used.update(parts)
            return stacked(shapes)

        model = self.arch.build(self.config, get)
        harmless = {name.format(i=i) for name in self.arch.HARMLESS_TENSORS for i in range(self.config.n_layers)}
        for name in self.source.names():
            if name not in used and name not in harmless:
                raise UserError(
                    f"{self.source.where}: tensor {name} is not part of the {self.config.arch} architecture"
                )
        return model


def stacked(shapes: tuple[tuple[int, ...], ...]) -> jax.ShapeDtypeStruct:
    """The float32 shape of tensors below one another."""
    return jax.ShapeDtypeStruct((sum(shape[0] for shape in shapes), *shapes[0][1:]), np.float32)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a `.gguf` file, or a folder with `config.json` and safetensors; UserError says what is wrong."""
    path = Path(path)
    if path.is_dir():
        return from_folder(path)
    if path.is_file():
        return from_gguf(path)
    raise UserError(f"{path}: no such file or folder")


def from_folder(folder: Path) -> Checkpoint:
    """A Hugging Face checkpoint folder."""
    where = str(folder / "config.json")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: has no config.json, expected a Hugging Face checkpoint folder")
    values = read_json(folder / "config.json")
    arch = archs.find(values.get("model_type"), f"{where}: model_type")
    config = arch.config_from_hf(Fields(values, where))
    return Checkpoint(Safetensors(folder), config, arch, arch.HF_TENSORS)


def from_gguf(path: Path) -> Checkpoint:
    """A GGUF file."""
    source = GGUF(path)
    name = source.metadata.get("general.architecture")
    arch = archs.find(name, f"{path}: general.architecture")
    values = {
        key.removeprefix(f"{name}."): value for key, value in source.metadata.items() if key.startswith(f"{name}.")
    }
    tokens = source.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list):
        values.setdefault("vocab_size", len(tokens))
    config = arch.config_from_gguf(Fields(values, f"{path}: {name}"), source.names())
    return Checkpoint(source, config, arch, arch.GGUF_TENSORS)
