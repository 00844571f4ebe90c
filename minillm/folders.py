"""Where things are kept: models that come with the package or were pulled, programs that were compiled.

And how they are put there: whole, or not at all.
"""

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EISDIR
from glob import escape
from pathlib import Path

from .errors import UserError


def cache_folder() -> Path:
    """$MINILLM_CACHE, or `minillm` in the user's cache folder."""
    given = os.environ.get("MINILLM_CACHE")
    if given:
        return Path(given)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minillm"
    except RuntimeError:
        raise UserError("there is no home folder to keep things in; set MINILLM_CACHE") from None


def model_folder() -> Path:
    """Pulled models."""
    return cache_folder() / "models"


def bundled_models() -> dict[str, Path]:
    """The models that come with the package, by name."""
    folder = Path(__file__).parent / "models"
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/config.json"))}


def program_folder() -> Path:
    """Compiled programs."""
    return cache_folder() / "xla"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write a file or folder under, which becomes `path` when that is done. If it fails, nothing is left.

    What processes of this machine that were killed left of `path` goes as well. An OSError names the path.
    """
    if not path.name:
        raise IsADirectoryError(EISDIR, "Is a directory", str(path))
    begin, end = f"{path.name}.{platform.node()}.", ".part"  # other machines may write to the same disk
    draft = path.with_name(f"{begin}{os.getpid()}{end}")
    for left in path.parent.glob(f"{escape(begin)}*{end}"):
        if not is_another(left.name.removeprefix(begin).removesuffix(end)):
            remove(left)
    try:
        yield draft
        os.replace(draft, path)
    except BaseException as error:
        remove(draft)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise


def is_another(process: str) -> bool:
    """Whether another process of that number runs here, or may run, where that cannot be found out."""
    if not process.isdecimal() or os.name != "posix":
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return int(process) != os.getpid()


def remove(path: Path) -> None:
    """Take a file or a folder away, if it is there and that is allowed."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
