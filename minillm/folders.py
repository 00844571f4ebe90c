"""Where things are kept: models that come with the package or were pulled, programs that were compiled."""

import os
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
