"""A record as one HTML file that steps through it, with everything inside and nothing from anywhere else.

What is drawn as a heat map is stored in eight bits on a square-root scale, as small weights matter too: a value x
is kept as sign(x) round(L sqrt(|x| / max)), with L = 255 levels where nothing is negative and 127 elsewhere. So a
weight is exact to about sqrt(x) / 255. All other numbers have four digits. Data are compressed (zlib) and in
base64, in which no prompt, however it looks, can be taken for HTML.
"""

import base64
import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from ..folders import whole
from ..lm import LM
from ..model import Model
from ..tokenizer import Tokenizer
from .record import Pass, Record, stream_of
from .rounding import rounded_in
from .work import SHAPES, at_the_ends, bytes_moved, code_of, operations, sizes

BEST, FEW = 10, 5  # of the likeliest tokens: of the model's own, and on the way
HEADS, WIDTH, HEIGHT = 8, 128, 64  # of a recurrence's state: what is shown of it at most
CHANNELS = 64  # of a feed-forward layer's


def write_page(target: Path, text: str) -> None:
    """Write a page in one step."""
    with whole(target) as draft:
        draft.write_text(text, encoding="utf-8")


def page_of(
    record: Record, name: str, errors: dict[str, float] | None = None, drift: np.ndarray | None = None
) -> str:
    """The HTML of a record of a model called `name`.

    If it was quantised, errors are those of `rounding_errors`, and drift is that of `stream_errors`.
    """
    folder = Path(__file__).parent
    parts = {part: (folder / f"page.{part}").read_text(encoding="utf-8") for part in ("html", "css", "js")}
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=True)
    data = base64.b64encode(zlib.compress(packed(record, name, errors or {}, drift), 9)).decode()
    ours = {part: Markup(parts[part]) for part in ("css", "js")}
    return environment.from_string(parts["html"]).render(name=name, data=data, **ours)


def packed(record: Record, name: str, errors: dict[str, float], drift: np.ndarray | None) -> bytes:
    """What the page knows: the length of a JSON text in four bytes, the text, and the codes of heat maps."""
    codes, model = Codes(), record.lm.model
    passes = [told(one, model, codes) for one in record.passes]
    if drift is not None:
        for shown, one in zip(passes, record.passes, strict=True):
            shown["drift"] = digits(drift[:, one.start : one.start + one.n_kept])
    known = {
        "model": name,
        "finish": record.finish_reason,
        "blocks": [
            about(block, layer, rounded_in(i, errors))
            for i, (block, layer) in enumerate(zip(model.blocks, layers_of(record.lm), strict=True))
        ],
        "v": record.lm.config.v,
        "page_size": record.memory.page_size,
        "n_pages": record.memory.n_pages,
        "passes": passes,
        "code": code_of({type(block).__name__ for block in model.blocks}),
        "errors": {place: digits(value) for place, value in errors.items() if not place.startswith("blocks")},
    }
    ids = {token for one in passes for token in named_in(one)}
    known["names"] = names_of(record.lm.tokenizer, ids)
    text = json.dumps(known, separators=(",", ":"), allow_nan=False).encode()
    return len(text).to_bytes(4, "little") + text + b"".join(codes.parts)


class Codes:
    """Arrays as codes of one byte, one after the other."""

    def __init__(self):
        self.parts: list[bytes] = []
        self.size = 0

    def add(self, array: np.ndarray) -> dict[str, Any]:
        """Where the codes of an array begin, and what they mean: its shape, the largest magnitude, the sign."""
        codes, largest, signed = encoded(array)
        at, self.size = self.size, self.size + codes.nbytes
        self.parts.append(codes.tobytes())
        return {"at": at, "shape": list(array.shape), "max": float(largest), "signed": signed}


def encoded(array: np.ndarray) -> tuple[np.ndarray, float, bool]:
    """Codes int8 or uint8, the largest magnitude, and whether they are signed: see the top of this file."""
    array = np.asarray(array, np.float64)
    largest, signed = float(np.max(np.abs(array), initial=0.0)), bool(np.any(array < 0))
    levels = 127 if signed else 255
    root = np.sign(array) * np.sqrt(np.abs(array) / (largest or 1.0))
    return np.rint(levels * root).astype(np.int8 if signed else np.uint8), largest, signed


def decoded(codes: np.ndarray, largest: float, signed: bool) -> np.ndarray:
    """What codes stand for, as the page has it."""
    root = codes / (127 if signed else 255)
    return np.sign(root) * np.square(root) * largest


def digits(value: Any) -> Any:
    """A number, or an array as lists, in four digits."""
    if isinstance(value, np.ndarray):
        return [digits(one) for one in value]
    return float(f"{value:.4g}")


def about(block: Any, layer: int, errors: dict[str, float]) -> dict[str, Any]:
    """What the page says of a block in every pass."""
    kind = type(block).__name__
    rope = getattr(block.spec, "rope", None)
    return {
        "kind": kind,
        "layer": layer,
        "shapes": {"x": "b t d", **SHAPES[type(block)]},
        "freqs": digits(np.array(rope.freqs)) if rope else [],
        "window": getattr(block.spec, "window", None),
        "errors": {place: digits(value) for place, value in errors.items()},
    }


def layers_of(lm: LM) -> list[int]:
    """By block the number of its layer."""
    return [i for i, layer in enumerate(lm.config.layers) for _ in layer]


def told(one: Pass, model: Model, codes: Codes) -> dict[str, Any]:
    """What the page shows of a pass."""
    return {
        "start": one.start,
        "tokens": one.tokens,
        "kept": one.n_kept,
        "new": one.new,
        "drafted": one.drafted,
        "pages": one.pages,
        "blocks": [inside(one, i, block, codes) for i, block in enumerate(model.blocks)],
        "ends": at_the_ends(model, one),
        "lens": [*(likeliest(row, FEW) for row in one.lens[:-1]), likeliest(one.lens[-1], BEST)],
        "stages": stages_of(one),
        "norms": digits(np.linalg.norm(stream_of(one.blocks), axis=-1)),
    }


def inside(one: Pass, place: int, block: Any, codes: Codes) -> dict[str, Any]:
    """What happened in a block."""
    seen, state = one.blocks[place], one.state[place]
    out: dict[str, Any] = {
        "sizes": sizes(block, one),
        "bytes": bytes_moved(block, one, place),
        "flops": operations(block, one, place),
        "added": digits(np.linalg.norm(seen["y"] - seen["x"], axis=-1)),
    }
    if "inside" in seen:
        channels = seen["inside"][one.speaks]
        out["inside"], out["half"] = codes.add(channels[:CHANNELS]), half_of(channels)
    if "weights" in seen:
        out["weights"] = codes.add(seen["weights"])
        out["q"] = codes.add(seen["q"][one.speaks])
        out["rows"] = state["values"].shape[1]
    if "gates" in seen:
        out["gates"] = {name: codes.add(gate[:, :WIDTH]) for name, gate in seen["gates"].items()}
        name = "delta" if "delta" in state else "ssm"
        whole = state[name] if state[name].ndim == 3 else state[name][None]
        out["state"], out["full"] = codes.add(whole[:HEADS, :HEIGHT, :WIDTH]), list(state[name].shape)
        out["channels"] = {name: gate.shape[1] for name, gate in seen["gates"].items()}
    if "chosen" in seen:
        out["chosen"], out["share"] = seen["chosen"].tolist(), digits(seen["share"])
        out["load"] = np.bincount(seen["chosen"].ravel(), minlength=block.spec.e).tolist()
    return out


def half_of(channels: np.ndarray) -> int:
    """How many of these numbers, the largest ones, make half of the sum of squares."""
    squares = np.sort(np.square(channels.astype(np.float64)))[::-1]
    return int(np.searchsorted(np.cumsum(squares), squares.sum() / 2)) + 1


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits [v]; -inf is 0."""
    weights = np.exp(logits.astype(np.float64) - np.max(logits))
    return weights / weights.sum()


def likeliest(logits: np.ndarray, n: int) -> list[list[Any]]:
    """The n likeliest tokens of logits [v], each with its logit and probability."""
    best, p = np.argsort(-logits, kind="stable")[:n], softmax(logits)
    return [[int(token), digits(logits[token]), digits(p[token])] for token in best]


def stages_of(one: Pass) -> dict[str, Any]:
    """By stage of the sampler the probabilities of the likeliest tokens and of the one drawn."""
    first = one.stages["logits"]
    tokens = [int(token) for token in np.argsort(-first, kind="stable")[:BEST]]
    tokens += [one.new[-1]] if one.new[-1] not in tokens else []
    rows = {}
    for name, logits in one.stages.items():
        p = softmax(logits)
        rows[name] = {"p": digits(p[tokens]), "left": int(np.count_nonzero(np.isfinite(logits)))}
    return {"tokens": tokens, "rows": rows}


def named_in(one: dict[str, Any]) -> Iterable[int]:
    """The ids of tokens that the page names in a pass."""
    lens = [token for row in one["lens"] for token, _, _ in row]
    return [*one["tokens"], *one["new"], *lens, *one["stages"]["tokens"]]


def names_of(tokenizer: Tokenizer | None, ids: Iterable[int]) -> dict[int, str]:
    """How tokens read in the middle of a text, with the space in front of them; else their names or numbers."""
    if tokenizer is None:
        return {token: f"#{token}" for token in sorted(ids)}
    before = tokenizer.encode("a", special=False)[-1:]
    start, spelled = (
        tokenizer.decode(before),
        {token: name for name, token in tokenizer.backend.vocabulary().items()},
    )
    names = {}
    for token in sorted(ids):
        text = tokenizer.decode([*before, token]).removeprefix(start)
        part = not text.strip("\N{REPLACEMENT CHARACTER}")  # of a character, or nothing
        names[token] = spelled.get(token, f"#{token}") if part else text
    return names
