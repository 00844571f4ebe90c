"""Writing Hugging Face folders: config.json as given, and the tensors it describes in one safetensors file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from ..archs import Arch, find_hf
from ..archs.tensors import View
from ..config import Fields
from ..errors import UserError
from ..folders import whole
from ..model import Model
from ..quant import is_weight
from .parameters import parameters
from .safetensors import SINGLE

DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}


def write_folder(
    folder: str | Path,
    model: Model,
    values: Mapping[str, Any],
    *,
    arch: Arch | None = None,
    dtype: Literal["F32", "F16", "BF16"] = "BF16",
    more: Mapping[str, bytes] | None = None,
) -> None:
    """Write a model to a folder, which appears under its name once it is whole; UserError if there is one.

    values are the entries of config.json, which must describe the model; arch is as in `minillm.load`; more are
    other files by name, such as a tokenizer's.
    """
    folder = Path(folder)
    check_free(folder)
    arch = arch or find_hf(values.get("model_type"), "config.json: model_type")
    config = arch.config_from_hf(Fields(values, "config.json"))
    tensors: dict[str, np.ndarray] = {}
    for request, array in parameters(model, config):
        if is_weight(array):
            raise UserError(f"{folder}: {request.place} is coded, expected plain numbers; see checkpoint.quantised")
        view = View(NoTensors(), config, request.layer)
        tensors |= arch.HF_TENSORS[request.name].write(view, array, *request.shapes)
    kept = {name: array.astype(DTYPES[dtype]) for name, array in tensors.items()}
    write_files(folder, kept, {"config.json": config_text(values), **(more or {})})


def config_text(values: Mapping[str, Any]) -> bytes:
    """A config.json."""
    return (json.dumps(dict(values), indent=2) + "\n").encode()


def check_free(folder: Path) -> None:
    """UserError if there is something under that name."""
    if folder.exists():
        raise UserError(f"{folder}: is there already; move it away, or choose another name")


def write_files(folder: Path, tensors: Mapping[str, np.ndarray], files: Mapping[str, bytes]) -> None:
    """Write a folder of tensors and other files; it appears under its name once it is whole."""
    check_free(folder)
    kept = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with whole(folder) as draft:
            draft.mkdir()
            save_file(kept, draft / SINGLE, metadata={"format": "pt"})  # transformers asks for this word
            (draft / SINGLE).chmod(0o644)  # safetensors leaves it to its owner alone
            for name, content in files.items():
                (draft / name).write_bytes(content)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}: cannot be written: {getattr(error, 'strerror', None) or error}") from None


class NoTensors:
    """A checkpoint in which nothing stands yet: names are written out in full."""

    def names(self) -> tuple[str, ...]:
        return ()

    def shape(self, name: str) -> tuple[int, ...]:
        raise KeyError(name)

    def read(self, name: str, index: Any = ()) -> np.ndarray:
        raise KeyError(name)
