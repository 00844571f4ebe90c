"""Progress: how far one came in each lesson, kept as JSON in the cache folder."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..folders import cache_folder, whole


@dataclass
class Progress:
    """Of one lesson: steps taken, and the exercises whose answers were right."""

    steps: int = 0
    solved: list[str] = field(default_factory=list)


def progress_file() -> Path:
    """Where it is kept."""
    return cache_folder() / "tutorial.json"


def read_progress() -> dict[str, Progress]:
    """By the name of the lesson. A file that cannot be read is no progress: it is worth no error."""
    try:
        return {name: Progress(**one) for name, one in json.loads(progress_file().read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def write_progress(name: str, progress: Progress) -> None:
    """Keep one lesson's progress."""
    path, known = progress_file(), read_progress() | {name: progress}
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as draft:
        draft.write_text(json.dumps({name: asdict(one) for name, one in known.items()}, indent=1))
