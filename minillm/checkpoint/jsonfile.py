"""Reading a JSON file that may be anything."""

import json
from pathlib import Path
from typing import Any

from ..errors import UserError

LARGEST = 64 << 20  # bytes; the config, index and tokenizer settings of the largest models are far below


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; UserError if it cannot be read, is too large, or is not a JSON object."""
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path}: has {path.stat().st_size} bytes, expected at most {LARGEST}")
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, expected a JSON object")
    return content
