"""Texts on which tokenizers have been seen to differ, the same ones on every run."""

import random

from goldens.make_smollm2_tokens import KINDS, joined

# Where the letters of some scripts begin; 40 code points from there are drawn from.
SCRIPTS = [0x41, 0xC0, 0x100, 0x250, 0x2B0, 0x300, 0x370, 0x400, 0x531, 0x5D0, 0x620, 0x710, 0x780, 0x7C0, 0x905]
SCRIPTS += [0x985, 0xA05, 0xB05, 0xC05, 0xD05, 0xE01, 0xE81, 0xF40, 0x1000, 0x10D0, 0x1100, 0x1200, 0x13A0, 0x1401]
SCRIPTS += [0x1681, 0x16A0, 0x1780, 0x1820, 0x1C90, 0x1E00, 0x1F00, 0x1FD0, 0x2070, 0x2100, 0x2150, 0x2460, 0x2C00]
SCRIPTS += [0x3041, 0x30A1, 0x3105, 0x3131, 0x4E00, 0xA000, 0xA640, 0xAC00, 0xFB00, 0xFE30, 0xFF10, 0xFF21, 0xFF66]
SCRIPTS += [0x10000, 0x10400, 0x104B0, 0x10C80, 0x12000, 0x1D400, 0x1E900, 0x1F600, 0x20000, 0x2F800, 0xE0001]
SPECIALS = (
    "<s> </s> <unk> <pad> <0x0A> <0xFF> [INST] [/INST] <start_of_turn> <eos> <bos> <|eot_id|> ▁ ▁▁ <mask>".split()
)
MARKED = [
    "e\u0301",
    "\u0301",
    "n\u0303o",
    "A\u030a",
    "\u1100\u1161",
    "\u212b",
    "ﬁ",
    "①",
    "ｱ",
    "ſ",
    "'ſ",
    "ß",
    "İ",
    "ǆ",
]


def any_script(rng: random.Random) -> str:
    start = rng.choice(SCRIPTS)
    return "".join(chr(start + rng.randrange(40)) + rng.choice(["", "", " "]) for _ in range(rng.randint(1, 12)))


def any_bytes(rng: random.Random) -> str:
    return rng.randbytes(rng.randint(1, 20)).decode(*rng.choice([("utf-8", "replace"), ("latin-1",)]))


MORE = [
    any_script,
    any_script,
    any_bytes,
    joined([*SPECIALS, "user", "a"], 6, ["", " ", "\n"]),
    joined(["\0", "\ufeff", "\x7f", "\u200d", "\u2581", "word"], 5, ["", " "]),
    joined(["\n", "\n\n", "\t", "    ", "\r\n", "\u3000", "x", "if y:"], 9, ["", "", " "]),
    joined(MARKED, 6, ["", " ", "a"]),
]


def odd_texts(count: int, seed: int = 0) -> list[str]:
    """So many different texts."""
    rng, found = random.Random(seed), {"": None, " ": None, "  ": None, "\0": None}
    kinds = [*KINDS, *MORE]
    while len(found) < count:
        found[kinds[len(found) % len(kinds)](rng)] = None
    return list(found)
