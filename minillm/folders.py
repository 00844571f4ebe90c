"""Where things are kept: models that come with the package or were pulled, programs that were compiled.

And how they are put there: whole, or not at all.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EISDIR
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
    """A name to write a file under, which becomes `path` when that is done. If it fails, nothing is left.

    An OSError names the path.
    """
    if not path.name:
        raise IsADirectoryError(EISDIR, "Is a directory", str(path))
    draft = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield draft
        os.replace(draft, path)
    except BaseException as error:
        draft.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise
