"""Texts that come with the package, which no bundled model has learned from: to calibrate with, and to measure on.

held_out("recipes")        documents of one source
calibration()              every second document of both sources
evaluation()               the others
"""

import json
from pathlib import Path
from typing import NamedTuple

SOURCES = ("recipes", "scripture")


class Document(NamedTuple):
    """A text by itself."""

    source: str
    title: str
    text: str


def held_out(source: str) -> list[Document]:
    """The documents of a source, always in the same order."""
    lines = (Path(__file__).parent / f"{source}.jsonl").read_text(encoding="utf-8").splitlines()
    return [Document(source, **json.loads(line)) for line in lines]


def calibration() -> list[str]:
    """Texts to calibrate with, recipes and scripture by turns as far as both last."""
    return [document.text for document in mixed()[::2]]


def evaluation() -> list[str]:
    """Texts to measure on, none of them for calibration."""
    return [document.text for document in mixed()[1::2]]


def mixed() -> list[Document]:
    """The documents of all sources, spread evenly."""
    places = []
    for source in SOURCES:
        documents = held_out(source)
        places += [(i / len(documents), document) for i, document in enumerate(documents)]
    return [document for _, document in sorted(places, key=lambda one: one[0])]
