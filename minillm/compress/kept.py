"""What a long run has found so far, in a folder, so that a killed run goes on where it was."""

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

Arrays = dict[str, np.ndarray]


def digest(names: Iterable[object], arrays: Iterable[np.ndarray]) -> str:
    """A short name for these words and numbers; others have another."""
    found = hashlib.sha256(repr(list(names)).encode())
    for array in arrays:
        found.update(f"{array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()[:16]


def kept(folder: Path | None, name: str, key: Callable[[], str], make: Callable[[], Arrays]) -> Arrays:
    """Arrays by name: those in the folder if they are there, else made, and then kept if there is a folder.

    `key` names all that they follow from and is part of the file's name: nothing of another run is ever taken.
    """
    if folder is None:
        return make()
    path = folder / f"{name}.{key()}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f".{path.name}"
        save_file({name: np.array(array, order="C") for name, array in make().items()}, draft)
        os.replace(draft, path)
    return load_file(path)
