"""Reading a JSON file that may be anything."""

import json
from pathlib import Path
from typing import Any

from ..config import shown
from ..errors import UserError

LARGEST = 64 << 20  # bytes; the config, index and tokenizer settings of the largest models are far below
LONGEST_NAME = 255  # characters of a key


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; UserError if it cannot be read, is too large, or is not a JSON object."""
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path}: has {path.stat().st_size} bytes, expected at most {LARGEST}")
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    return parse_json(raw, str(path))


def parse_json(raw: bytes, where: str) -> dict[str, Any]:
    """The JSON object in these bytes, from `where`; UserError if they are none, or its keys are no names."""
    try:
        content = json.loads(raw.decode(), object_pairs_hook=named)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{where}: holds a {type(content).__name__}, expected a JSON object")
    return content


def named(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The entries of an object; ValueError if a key is there twice, for readers differ in which one counts.

    Or if it is not printable, or endless: a key stands in messages as it is.
    """
    entries = dict(pairs)
    odd = next((key for key in entries if not key.isprintable() or not 0 < len(key) <= LONGEST_NAME), None)
    if odd is not None:
        raise ValueError(f"{shown(odd)} is a key, expected 1 to {LONGEST_NAME} printable characters")
    if len(entries) < len(pairs):
        seen = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"{shown(twice)} is there twice")
    return entries
