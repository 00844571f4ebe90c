"""Traces for tests: programs that compile fast, and what a page knows."""

import base64
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import jax
import numpy as np
import pytest
from agreement import QUICK

from minillm.speculative import Tree
from minillm.trace.page import decoded


@contextmanager
def quick_programs() -> Iterator[None]:
    """Compile the watched programs unoptimised, three times as fast."""
    from minillm import generate, lm
    from minillm.speculative import decode
    from minillm.trace import record, rounding

    plain: dict = {"compiler_options": QUICK}
    both: dict = {"donate_argnames": ("state", "history"), **plain}
    programs = [(record, name, both) for name in ("advance", "verify", "read")]
    programs += [(record, "look_through", plain), (rounding, "advance", both)]
    programs += [(generate, "advance", both), (decode, "verify", both), (lm, "score", plain)]
    with pytest.MonkeyPatch.context() as patch:
        for place, name, options in programs:
            patch.setattr(place, name, jax.jit(getattr(place, name).__wrapped__, **options))
        yield


def unpacked(html: str) -> tuple[dict, bytes]:
    """What a page knows, and its codes."""
    (data,) = re.findall(r'<script type="text/plain" id="data">([A-Za-z0-9+/=]+)</script>', html)
    whole = zlib.decompress(base64.b64decode(data))
    size = int.from_bytes(whole[:4], "little")
    return json.loads(whole[4 : 4 + size]), whole[4 + size :]


def array_of(where: dict, codes: bytes) -> np.ndarray:
    """An array of a page."""
    size = int(np.prod(where["shape"]))
    part = np.frombuffer(codes, np.int8 if where["signed"] else np.uint8, size, where["at"])
    return decoded(part.reshape(where["shape"]), where["max"], where["signed"])


class Parrot:
    """Drafts what it was told comes next, then nonsense."""

    def __init__(self, text: Sequence[int]):
        self.text = text

    def draft(self, text: Sequence[int], most: int) -> Tree:
        """Two tokens that are right, if there are so many, and others that are not."""
        right = self.text[len(text) : len(text) + 2]
        tokens = [*right, *[5] * most][:most]
        return Tree(tokens, list(range(-1, most - 1)))
