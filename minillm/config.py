"""Config: the sizes and constants of a model, read strictly from a checkpoint's own description.

A field that would change the maths and is not understood must never be skipped in silence, so `Fields` hands
out each entry once and, at the end, refuses whatever nobody asked for.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .errors import UserError

MOST_LAYERS = 1000  # more than any model has; the number comes from a file nobody vouches for


@dataclass(frozen=True)
class Config:
    """What a model is made of; sizes by the letters of `minillm.ops`.

    layers lists the blocks of each layer by their descriptions (`blocks.AttentionSpec`, `blocks.MLPSpec` ...), in
    the order in which they run. arch is the family's name in the file it came from, for messages. context is the
    longest sequence the model was made for, or less if a user asked for less, which `limited` then says. tied says
    the head is the embedding's transpose; eos lists the ids that end a text. norm is the kind of every norm, eps
    its constant. embed_scale multiplies embeddings; softcap, if any, bounds logits smoothly; learned_positions is
    for how many positions there is a vector of their own, which is added to the embedding.
    """

    arch: str
    d: int
    v: int
    context: int
    layers: tuple[tuple[Any, ...], ...]
    tied: bool
    eos: tuple[int, ...] = ()
    norm: Literal["rms", "layer"] = "rms"
    eps: float = 1e-5
    embed_scale: float = 1.0
    softcap: float | None = None
    learned_positions: int = 0
    limited: bool = False

    def __post_init__(self):
        check_words(self)


class Fields:
    """The entries of one config file, each read once; errors name the file and the field.

    context is the length a user asked for, None for what the model was made for.
    """

    def __init__(self, values: Mapping[str, Any], where: str, context: int | None = None):
        self.values, self.where, self.context, self.read = values, where, context, set()

    def has(self, key: str) -> bool:
        """Whether there is such an entry, and it is not null."""
        return self.values.get(key) is not None

    def integer(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number from `least` to 2^31 - 1."""
        expected = f"a whole number from {least} to 2147483647"
        return self._get(key, default, expected, lambda value: is_whole(value) and least <= value < 2**31)

    def layer_count(self, key: str) -> int:
        """How many layers there are."""
        n_layers = self.integer(key)
        self.require(n_layers <= MOST_LAYERS, key, f"at most {MOST_LAYERS}")
        return n_layers

    def opened_for(self, trained: int) -> int:
        """The context a model is opened with: what it was made for, or less where the user asks for less."""
        return trained if self.context is None else min(trained, self.context)

    def is_limited(self, trained: int) -> bool:
        """Whether that is less."""
        return self.opened_for(trained) < trained

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above 0."""
        return float(self._get(key, default, "a number above 0", is_positive))

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        return self._get(key, default, "true or false", lambda value: isinstance(value, bool))

    def text(self, key: str) -> str:
        """A string."""
        return self._get(key, None, "a string", lambda value: isinstance(value, str))

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """A list of `count` numbers above 0."""
        expected = f"a list of {count} numbers above 0"
        value = self._get(key, None, expected, lambda value: isinstance(value, list) and len(value) == count)
        self.require(all(is_positive(one) for one in value), key, expected)
        return tuple(float(one) for one in value)

    def choices(self, key: str, count: int, *allowed: Any) -> tuple[Any, ...]:
        """A list of `count` of the allowed values."""
        expected = f"a list of {count} of {', '.join(map(str, allowed))}"
        value = self._get(key, None, expected, lambda value: isinstance(value, list) and len(value) == count)
        self.require(all(one in allowed for one in value), key, expected)
        return tuple(value)

    def indices(self, key: str, count: int) -> tuple[int, ...]:
        """A list of whole numbers below `count`, as those of layers; none if the field is missing or null."""
        expected = f"a list of whole numbers from 0 to {count - 1}"
        found = self._get(key, [], expected, lambda value: isinstance(value, list))
        self.require(all(is_whole(one) and 0 <= one < count for one in found), key, expected)
        return tuple(found)

    def ids(self, key: str) -> tuple[int, ...]:
        """One token id or a list of them; none if the field is missing or null."""
        self.read.add(key)
        value = self.values.get(key)
        found = () if value is None else tuple(value) if isinstance(value, list) else (value,)
        fits = all(is_whole(one) and 0 <= one < 2**31 for one in found)
        self.require(fits, key, "a token id or a list of them")
        return found

    def require(self, fits: bool, key: str, expected: str) -> None:
        """UserError about a field unless it fits."""
        if not fits:
            raise UserError(f"{self.where}: {key} is {shown(self.values.get(key))}, expected {expected}")

    def only(self, key: str, *allowed: Any) -> None:
        """The field, if it is there, has one of the values that the maths here is written for."""
        self.read.add(key)
        value = self.values.get(key)
        if value is not None and value not in allowed:
            expected = " or ".join(map(shown, allowed))
            raise UserError(f"{self.where}: {key} is {shown(value)}, which is not supported; expected {expected}")

    def group(self, key: str) -> "Fields":
        """The entries of a nested object, none if it is missing or null."""
        value = self._get(key, {}, "an object", lambda value: isinstance(value, dict)) or {}
        return Fields(value, f"{self.where}: {key}", self.context)

    def finish(self, harmless: Collection[str]) -> None:
        """Refuse entries that were neither read nor are known to change nothing."""
        for key in self.values:
            if key not in self.read and key not in harmless and self.values[key] is not None:
                value = shown(self.values[key])
                raise UserError(f"{self.where}: {key} = {value} is not supported for this architecture")

    def _get(self, key: str, default: Any, expected: str, fits: Callable[[Any], bool]) -> Any:
        self.read.add(key)
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise UserError(f"{self.where}: {key} is missing, expected {expected}")
            return default
        self.require(fits(value), key, expected)
        return value


def check_words(described: Any) -> None:
    """ValueError unless the fields of a dataclass that are one of several words are one of them."""
    for name, kind in get_type_hints(type(described)).items():
        found = getattr(described, name)
        if get_origin(kind) is Literal and found not in get_args(kind):
            expected = ", ".join(map(repr, get_args(kind)))
            raise ValueError(f"{type(described).__name__}: {name} is {found!r}, expected one of {expected}")


def is_whole(value: Any) -> bool:
    """Whether value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_positive(value: Any) -> bool:
    """Whether value is a number above 0 that float32 can hold, and its inverse."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 1e-30 < value < 1e30


def shown(value: Any) -> str:
    """Value as it fits into a sentence."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} within hundreds of others"
    return text if len(text) <= 60 else text[:57] + "..."
